/*
 * Starts conntrack-textfile with the capabilities that the container was given.
 *
 * A user other than root gets what `docker run --cap-add` and Kubernetes add in
 * the bounding set alone, and execve(2) then leaves it nothing: so this program
 * has file capabilities. They are "=p", and it raises them itself: with "=ep" the
 * kernel does not start it where one of them was not given, even for --help.
 * They are not Python's, so that they are for this command alone. Nor may the
 * caller bring code into it: Python is isolated (-I), which leaves out PYTHONPATH
 * and the current directory, and the environment holds what the command reads.
 */
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PYTHON
#define PYTHON "/opt/conntrack-textfile/bin/python"
#endif
static char *const COMMAND[] = {PYTHON, "-I", "-m", "conntrack_textfile"};
static const char *const KEPT[] = {
    "CONNTRACK_TEXTFILE_ENGINE",
    "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", /* --web.systemd-socket */
    "TZ",                                         /* the clock of top */
};
static const unsigned WANTED[] = {CAP_NET_ADMIN, CAP_DAC_READ_SEARCH};

/* Make the wanted capabilities that are permitted ambient: these outlast execve(2). */
static void keep_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

    if (syscall(SYS_capget, &header, sets) != 0)
        return;
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++) {
        struct __user_cap_data_struct *set = &sets[CAP_TO_INDEX(WANTED[i])];
        set->inheritable |= set->permitted & CAP_TO_MASK(WANTED[i]);
    }
    if (syscall(SYS_capset, &header, sets) != 0)
        return;
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++)
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, WANTED[i], 0, 0);
    /* What failed was not given. The command says what it lacks, if it does. */
}

/* The variable of this name as the environment has it, or NULL. */
static char *variable(char **environment, const char *name)
{
    size_t length = strlen(name);

    for (; *environment; environment++)
        if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=')
            return *environment;
    return NULL;
}

int main(int argc, char **argv, char **environment)
{
    size_t own = sizeof COMMAND / sizeof *COMMAND, variables = 0;
    char *kept[sizeof KEPT / sizeof *KEPT + 1] = {NULL};
    char **command = calloc(own + argc + 1, sizeof *command);

    if (command == NULL) {
        perror("conntrack-textfile");
        return 127;
    }
    memcpy(command, COMMAND, sizeof COMMAND);
    for (int i = 1; i < argc; i++)
        command[own + i - 1] = argv[i];
    for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++)
        if ((kept[variables] = variable(environment, KEPT[i])) != NULL)
            variables++;
    keep_capabilities();
    execve(PYTHON, command, kept);
    perror(PYTHON);
    return 127;
}
