/* Bare sockets in C: the floor under every other subject of `hostline bench`.
 *
 *     pingpong serve TRANSPORT WORKLOAD FD          FD is bound, and listens where that is needed
 *     pingpong drive TRANSPORT WORKLOAD PATH|PORT   commands on standard input, one a line; answers on standard output
 *
 * An answer is 8 bytes, the length, and so many bytes: an array of nanoseconds or one number. Blocking sockets, one
 * system call each way on each side, nothing else. A client that begins sends 16 bytes (what, size, count), except in
 * the workloads connect, fanin and idle, where what comes simply goes back. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (1 << 20)
#define WRITE 65536 /* a batch on a stream is written in pieces of about this size */
#define PACKETS 64  /* a batch of packets is so many */
#define MAX_FDS 16

struct header { char what; char pad[3]; uint32_t size; uint64_t count; } __attribute__((packed));

static char *buffer, *sent;
static int is_stream, is_tcp, is_datagram, is_plain;
static const char *target;
static int *socks;
static size_t sock_count, sock_room;

static void fail(const char *what) { perror(what); exit(1); }
static void fail_with(const char *text) { fprintf(stderr, "%s\n", text); exit(1); }

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void send_all(int fd, const void *data, size_t size) {
    const char *from = data;
    while (size) {
        ssize_t n = send(fd, from, size, MSG_NOSIGNAL);
        if (n <= 0) fail("send");
        from += n; size -= (size_t)n;
    }
}

/* Return 0 at the end of the stream. */
static int recv_all(int fd, void *data, size_t size) {
    char *to = data;
    while (size) {
        ssize_t n = recv(fd, to, size, 0);
        if (n < 0) { if (errno == ECONNRESET) return 0; fail("recv"); }
        if (n == 0) return 0;
        to += n; size -= (size_t)n;
    }
    return 1;
}

static void no_delay(int fd) {
    int one = 1;
    if (is_tcp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* --- the server ------------------------------------------------------------------------------------ */

/* Receive one byte with descriptors, close them and return how many they were, or -1 at the end. */
static int recv_fds(int fd) {
    char byte, control[CMSG_SPACE(MAX_FDS * sizeof(int))];
    struct iovec part = { &byte, 1 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) <= 0) return -1;
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        int here = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < here; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + (size_t)i * sizeof got, sizeof got);
            close(got);
        }
        count += here;
    }
    return count;
}

static void answer(int fd) {
    struct header h;
    while (recv_all(fd, &h, sizeof h)) {
        uint64_t size = h.size, number = h.size;
        if (size > BUFFER) fail_with("message too large");
        if (h.what == 'E') {
            for (uint64_t i = 0; i < h.count; i++) {
                if (!recv_all(fd, buffer, size)) return;
                send_all(fd, buffer, size);
            }
        } else if (h.what == 'T') {
            for (uint64_t i = 0; i < h.count; i++) {
                if (!recv_all(fd, buffer, size)) return;
                send_all(fd, &number, sizeof number);
            }
        } else if (h.what == 'F') {
            for (uint64_t i = 0; i < h.count; i++) {
                int got = recv_fds(fd);
                if (got < 0) return;
                number = (uint64_t)got;
                send_all(fd, &number, sizeof number);
            }
        } else {
            number = 0;
            if (is_stream) {
                for (uint64_t left = size * h.count; left;) {
                    ssize_t n = recv(fd, buffer, left < WRITE ? left : WRITE, 0);
                    if (n <= 0) return;
                    left -= (uint64_t)n;
                }
                number = h.count;
            } else {
                for (uint64_t i = 0; i < h.count; i++) {
                    ssize_t n = recv(fd, buffer, BUFFER, 0);
                    if (n <= 0) return;
                    number += (uint64_t)n == size;
                }
            }
            send_all(fd, &number, sizeof number);
        }
    }
}

static void serve_datagrams(int fd) {
    struct sockaddr_un from;
    struct header h;
    for (;;) {
        socklen_t length = sizeof from;
        if (recvfrom(fd, &h, sizeof h, 0, (struct sockaddr *)&from, &length) != sizeof h) fail("recvfrom");
        uint64_t number = 0;
        for (uint64_t i = 0; i < h.count; i++) {
            ssize_t n = recv(fd, buffer, BUFFER, 0);
            if (n < 0) fail("recv");
            if (h.what == 'E') {
                if (sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, length) != n) fail("sendto");
            } else number += (uint64_t)n == h.size;
        }
        if (h.what != 'E' && sendto(fd, &number, sizeof number, 0, (struct sockaddr *)&from, length) < 0) fail("sendto");
    }
}

static void echo_to_many(int listener) {
    struct epoll_event ready[256], wanted = { .events = EPOLLIN, .data.fd = listener };
    int poll = epoll_create1(EPOLL_CLOEXEC);
    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted)) fail("epoll");
    for (;;) {
        int count = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int accepted = accept(listener, NULL, NULL);
                if (accepted < 0) fail("accept");
                no_delay(accepted);
                wanted.data.fd = accepted;
                if (epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &wanted)) fail("epoll_ctl");
                continue;
            }
            ssize_t n = recv(fd, buffer, WRITE, 0);
            if (n <= 0) close(fd); else send_all(fd, buffer, (size_t)n);
        }
    }
}

static void serve(int listener, const char *workload) {
    if (is_datagram) serve_datagrams(listener);
    if (!strcmp(workload, "fanin") || !strcmp(workload, "idle")) echo_to_many(listener);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) fail("accept");
        no_delay(fd);
        if (is_plain) {
            for (ssize_t n; (n = recv(fd, buffer, WRITE, 0)) > 0;) send_all(fd, buffer, (size_t)n);
        } else answer(fd);
        close(fd);
    }
}

/* --- the client ------------------------------------------------------------------------------------ */

static int connected(void) {
    int type = is_stream ? SOCK_STREAM : is_datagram ? SOCK_DGRAM : SOCK_SEQPACKET;
    int fd = socket(is_tcp ? AF_INET : AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    if (is_tcp) {
        struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(target)) };
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        no_delay(fd);
        if (connect(fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
        return fd;
    }
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    if (is_datagram) {
        snprintf(to.sun_path, sizeof to.sun_path, "%s.%zu.%d", target, sock_count, (int)getpid());
        if (bind(fd, (struct sockaddr *)&to, sizeof to)) fail("bind");
    }
    snprintf(to.sun_path, sizeof to.sun_path, "%s", target);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
    return fd;
}

/* Add connections until there are `count`; those beyond the ones in use are held idle. */
static void grow(size_t count) {
    if (count > sock_room) {
        sock_room = count;
        if (!(socks = realloc(socks, count * sizeof *socks))) fail("realloc");
    }
    while (sock_count < count) {
        int fd = connected();
        socks[sock_count++] = fd;
    }
}

static void shrink(size_t count) {
    while (sock_count > count) close(socks[--sock_count]);
}

static void begin(char what, uint64_t size, uint64_t count) {
    struct header h = { .what = what, .size = (uint32_t)size, .count = count };
    if (!is_plain) send_all(socks[0], &h, sizeof h);
}

static void confirmed(int fd, uint64_t expected) {
    uint64_t got = 0;
    if (!recv_all(fd, &got, sizeof got)) fail_with("the server is gone");
    if (got != expected) {
        fprintf(stderr, "the server confirmed %llu, not %llu\n", (unsigned long long)got, (unsigned long long)expected);
        exit(1);
    }
}

static void exchange(int fd, uint64_t size) {
    send_all(fd, sent, size);
    if (!recv_all(fd, buffer, size)) fail_with("the server is gone");
}

static void send_messages(int fd, uint64_t size, uint64_t count, int is_batched) {
    if (!is_batched) {
        while (count--) send_all(fd, sent, size);
    } else if (is_stream) {
        uint64_t at_once = WRITE / size ? WRITE / size : 1;
        while (count) {
            uint64_t here = count < at_once ? count : at_once;
            for (uint64_t i = 0; i < here; i++) memcpy(buffer + i * size, sent, size); /* they were apart before */
            send_all(fd, buffer, here * size);
            count -= here;
        }
    } else {
        struct mmsghdr messages[PACKETS];
        struct iovec part = { sent, size };
        memset(messages, 0, sizeof messages);
        for (int i = 0; i < PACKETS; i++) { messages[i].msg_hdr.msg_iov = &part; messages[i].msg_hdr.msg_iovlen = 1; }
        while (count) {
            int n = sendmmsg(fd, messages, count < PACKETS ? (unsigned)count : PACKETS, 0);
            if (n <= 0) fail("sendmmsg");
            count -= (uint64_t)n;
        }
    }
}

static void reply(const void *data, uint64_t size) {
    fwrite(&size, sizeof size, 1, stdout);
    fwrite(data, 1, size, stdout);
    if (fflush(stdout)) fail("write");
}

static void pass(int fd, int file, int count) {
    char byte = 'f', control[CMSG_SPACE(MAX_FDS * sizeof(int))];
    struct iovec part = { &byte, 1 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control };
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    memset(control, 0, sizeof control);
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET; c->cmsg_type = SCM_RIGHTS; c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    for (int i = 0; i < count; i++) memcpy(CMSG_DATA(c) + (size_t)i * sizeof file, &file, sizeof file);
    if (sendmsg(fd, &message, MSG_NOSIGNAL) != 1) fail("sendmsg");
    confirmed(fd, (uint64_t)count);
}

static void timed(char what, uint64_t size, uint64_t count) {
    uint64_t *times = calloc(count ? count : 1, sizeof *times);
    if (!times) fail("calloc");
    int file = what == 'F' ? open("/proc/self/exe", O_RDONLY | O_CLOEXEC) : -1;
    if (what == 'C') shrink(0); else grow(1);
    if (what == 'F') begin(what, 1, count); else if (what != 'C') begin(what, size, count);
    for (uint64_t i = 0; i < count; i++) {
        int fd = sock_count ? socks[i % sock_count] : -1;
        uint64_t start = now();
        if (what == 'E') exchange(fd, size);
        else if (what == 'T') { send_all(fd, sent, size); confirmed(fd, size); }
        else if (what == 'F') pass(fd, file, (int)size);
        else { fd = connected(); exchange(fd, 64); close(fd); }
        times[i] = now() - start;
    }
    if (file >= 0) close(file);
    reply(times, count * sizeof *times);
    free(times);
}

static void drive(void) {
    char line[256], action[32];
    size_t used = 1;
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long a = 0, b = 0, c = 0;
        if (sscanf(line, "%31s %llu %llu %llu", action, &a, &b, &c) < 1) fail_with("no command");
        if (a > BUFFER) fail_with("message too large");
        if (!strcmp(action, "grow")) { shrink(a); grow(a); used = a; reply("", 0); }
        else if (!strcmp(action, "hold")) {
            /* Behind those in use, whose number is set back so that they are not used in turn. */
            grow(used + a); sock_count = used; reply("", 0);
        } else if (!strcmp(action, "release")) { sock_count = used + a; shrink(used); reply("", 0); }
        else if (!strcmp(action, "echo")) {
            grow(1);
            if (fread(sent, 1, a, stdin) != a) fail_with("no data");
            begin('E', a, 1);
            exchange(socks[0], a);
            reply(buffer, a);
            memset(sent, 'x', BUFFER);
        } else if (!strcmp(action, "latency")) timed('E', a, b);
        else if (!strcmp(action, "transfer")) timed('T', a, b);
        else if (!strcmp(action, "pass_fds")) { if (a > MAX_FDS) fail_with("too many descriptors"); timed('F', a, b); }
        else if (!strcmp(action, "reconnect")) timed('C', 64, a);
        else if (!strcmp(action, "one_way")) {
            uint64_t start = now();
            begin('O', a, b);
            send_messages(socks[0], a, b, (int)c);
            confirmed(socks[0], b);
            start = now() - start;
            reply(&start, sizeof start);
        } else if (!strcmp(action, "pipelined")) {
            uint64_t start = now(), window = c && c * a <= WRITE ? c : 1;
            begin('E', a, b);
            for (uint64_t left = b; left;) {
                uint64_t here = left < window ? left : window;
                send_all(socks[0], sent, here * a);
                if (!recv_all(socks[0], buffer, here * a)) fail_with("the server is gone");
                left -= here;
            }
            start = now() - start;
            reply(&start, sizeof start);
        } else fail_with("unknown command");
    }
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: pingpong serve|drive TRANSPORT WORKLOAD FD|PATH|PORT\n"); return 2; }
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody is left who wants an answer */
    const char *transport = argv[2], *workload = argv[3];
    is_tcp = !strcmp(transport, "tcp");
    is_stream = is_tcp || !strcmp(transport, "unix");
    is_datagram = !strcmp(transport, "datagram");
    is_plain = !strcmp(workload, "connect") || !strcmp(workload, "fanin") || !strcmp(workload, "idle");
    buffer = malloc(BUFFER);
    sent = malloc(BUFFER);
    if (!buffer || !sent) fail("malloc");
    memset(sent, 'x', BUFFER);
    target = argv[4];
    if (!strcmp(argv[1], "serve")) serve(atoi(argv[4]), workload);
    else {
        if (strcmp(workload, "connect")) grow(1);
        drive();
    }
    return 0;
}
