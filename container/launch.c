/*
 * Executes conntrack-textfile with the capabilities granted to the container.
 *
 * For a user other than root, `docker run --cap-add` and Kubernetes add capabilities
 * only to the bounding set, from which execve(2) grants none. So this program has file
 * capabilities (capabilities(7)). They are "=p", and it raises them itself: with "=ep"
 * execve(2) fails if the container lacks one of them, even for --help. Python has no
 * file capabilities, which would apply to any code. The caller must not add code either:
 * Python is isolated (-I), without PYTHONPATH and the current directory, and gets only
 * the environment variables that the command reads.
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
    "TZ",                                         /* local time in top */
};
static const unsigned WANTED[] = {CAP_NET_ADMIN, CAP_DAC_READ_SEARCH};

/* Make the permitted ones of WANTED ambient: execve(2) keeps ambient capabilities. */
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
    /* Errors are ignored: the command reports a capability that it needs and lacks. */
}

/* Return the entry "NAME=value" of the environment, or NULL. */
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
