/*
 * Starts conntrack-textfile with the capabilities that the container was given.
 *
 * A user other than root gets what `docker run --cap-add` and Kubernetes add in
 * the bounding set alone, and execve(2) then leaves it nothing: so this program
 * has file capabilities. They are "=p", and it raises them itself: with "=ep" the
 * kernel does not start it where one of them was not given, even for --help.
 * They are not Python's, so that they are for this command alone.
 */
#include <linux/capability.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char PROGRAM[] = "/opt/conntrack-textfile/bin/conntrack-textfile";
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

int main(int argc, char **argv)
{
    (void)argc;
    keep_capabilities();
    execv(PROGRAM, argv);
    perror(PROGRAM);
    return 127;
}
