/* Preloaded: the PERFORMED_K-th rename or link of a child happens, and reports the error PERFORMED_ERRNO, as a
 * network file system does when the answer is lost and the request sent once more. Then makes the file PERFORMED_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static pid_t parent;

__attribute__((constructor)) static void remember(void) { parent = getpid(); }

static int lie(int result)
{
    static int count;
    if (result != 0 || getpid() == parent || ++count != atoi(getenv("PERFORMED_K")))
        return result;
    close(creat(getenv("PERFORMED_LOG"), 0600));
    errno = atoi(getenv("PERFORMED_ERRNO"));
    return -1;
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return lie(real(from, to));
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
    return lie(real(from_fd, from, to_fd, to));
}

int link(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    return lie(real(from, to));
}
