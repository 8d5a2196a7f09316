/* Ping-pong over a Unix stream socket in C: the floor under every other row of pingpong.py.
 *
 *     pingpong PATH SIZE COUNT
 *
 * Forks a server that sends back what it gets, connects to it at PATH, and prints one round trip in nanoseconds a line.
 * Blocking sockets, one system call each way on each side, nothing else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); exit(1); }

static void send_all(int fd, const char *buffer, size_t size) {
    while (size) {
        ssize_t n = send(fd, buffer, size, MSG_NOSIGNAL);
        if (n <= 0) fail("send");
        buffer += n; size -= (size_t)n;
    }
}

static int recv_all(int fd, char *buffer, size_t size) {
    while (size) {
        ssize_t n = recv(fd, buffer, size, 0);
        if (n < 0) fail("recv");
        if (n == 0) return 0;
        buffer += n; size -= (size_t)n;
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "usage: pingpong PATH SIZE COUNT\n"); return 2; }
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(argv[1]) >= sizeof address.sun_path) { fprintf(stderr, "path too long\n"); return 2; }
    strcpy(address.sun_path, argv[1]);
    size_t size = (size_t)atol(argv[2]);
    long count = atol(argv[3]);
    char *buffer = calloc(1, size ? size : 1);
    long *times = malloc((size_t)count * sizeof *times);
    if (!buffer || !times) fail("malloc");
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)) fail("listen");
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) fail("accept");
        while (recv_all(fd, buffer, size)) send_all(fd, buffer, size);
        _exit(0);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    for (long i = -count / 10; i < count; i++) { /* the first tenth warms up */
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        send_all(fd, buffer, size);
        if (!recv_all(fd, buffer, size)) fail("server gone");
        clock_gettime(CLOCK_MONOTONIC, &end);
        if (i >= 0) times[i] = (end.tv_sec - begin.tv_sec) * 1000000000L + (end.tv_nsec - begin.tv_nsec);
    }
    close(fd);
    waitpid(child, NULL, 0);
    unlink(argv[1]);
    for (long i = 0; i < count; i++) printf("%ld\n", times[i]);
    return 0;
}
