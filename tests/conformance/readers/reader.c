/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Reads a list in one of many ways and prints what it got and how each call ended:
 * reader MODE LIST OUT [NUMBER]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST (2 << 20)

static const char *list, *copy;
static long number;
static char buffer[MOST];
static sigjmp_buf faulted;

static void say(const char *what, long result)
{
	if (result < 0)
		printf("[%s: %s]\n", what, strerror(errno));
	else
		printf("[%s: %ld]\n", what, result);
}

static void out(long length)
{
	if (length > 0)
		fwrite(buffer, 1, length, stdout);
}

static int opened(void)
{
	int fd = open(list, O_RDONLY);

	if (fd < 0) {
		say("open", fd);
		exit(1);
	}
	return fd;
}

static int target(void)
{
	return open(copy, O_RDWR | O_CREAT | O_TRUNC, 0600);
}

static void rest(int fd, size_t size)
{
	long got;

	while ((got = read(fd, buffer, size)) > 0)
		out(got);
	say("end", got);
}

/* What is in the copy, or, where nothing came, what read() still gets. */
static void after_copying(int fd, int into, long total, long last)
{
	say("total", total);
	if (!total && last < 0) {
		rest(fd, 65536);
		return;
	}
	lseek(into, 0, SEEK_SET);
	rest(into, 65536);
}

static void mode_short(void)
{
	int fd = opened();
	long got, reads = 0;

	while ((got = read(fd, buffer, number)) > 0) {
		out(got);
		reads++;
		if (got < number)
			break;
	}
	say("reads", reads);
}

static void mode_zero(void)
{
	int fd = opened();
	long got;

	while ((got = read(fd, buffer, number)) > 0) {
		printf("<%ld>", got);
		out(got);
	}
	say("end", got);
}

static void mode_once(void)
{
	long got = read(opened(), buffer, number);

	out(got);
	say("read", got);
}

static void mode_sendfile(void)
{
	int fd = opened(), into = target();
	long got, total = 0;

	while ((got = sendfile(into, fd, NULL, 1 << 20)) > 0)
		total += got;
	say("sendfile", got);
	after_copying(fd, into, total, got);
}

static void mode_sendoff(void)
{
	off_t at = number;

	say("sendfile", sendfile(target(), opened(), &at, 1 << 20));
}

static void mode_cfr(void)
{
	int fd = opened(), into = target();
	long got, total = 0;

	while ((got = copy_file_range(fd, NULL, into, NULL, 1 << 20, 0)) > 0)
		total += got;
	say("copy_file_range", got);
	after_copying(fd, into, total, got);
}

static long spliced(int fd, const int *ends)
{
	long got = splice(fd, NULL, ends[1], NULL, 65536, 0), left = got;

	while (left > 0) {
		long taken = read(ends[0], buffer, left);

		out(taken);
		left -= taken;
	}
	return got;
}

static void mode_splice(void)
{
	int fd = opened(), ends[2];
	long got, total = 0;

	if (pipe(ends))
		exit(1);
	while ((got = spliced(fd, ends)) > 0)
		total += got;
	say("splice", got);
	say("total", total);
	if (!total && got < 0)
		rest(fd, 65536);
}

static void mode_readsplice(void)
{
	int fd = opened(), ends[2];

	if (pipe(ends))
		exit(1);
	out(read(fd, buffer, 100));
	say("splice", spliced(fd, ends));
	rest(fd, 4096);
}

static void mode_teesplice(void)
{
	int ends[2];

	if (pipe(ends))
		exit(1);
	say("splice", splice(opened(), NULL, ends[1], NULL, 1 << 20, SPLICE_F_MOVE | SPLICE_F_MORE));
}

static void jump(int number_of_signal)
{
	siglongjmp(faulted, number_of_signal);
}

static void mapped(int kind, long length)
{
	int fd = opened(), caught;
	char *at = mmap(NULL, length, PROT_READ, kind, fd, 0);

	if (at == MAP_FAILED) {
		say("mmap", -1);
		rest(fd, 65536);
		return;
	}
	signal(SIGBUS, jump);
	caught = sigsetjmp(faulted, 1);
	if (caught) {
		printf("[signal %d]\n", caught);
		return;
	}
	memcpy(buffer, at, length);
	out(length);
	say("mapped", length);
}

static void mode_mmap_private(void)
{
	mapped(MAP_PRIVATE, 4096);
}

static void mode_mmap_shared(void)
{
	mapped(MAP_SHARED, 4096);
}

static long size_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -1 : st.st_size;
}

static void mode_mmap_size(void)
{
	mapped(MAP_PRIVATE, size_of(opened()));
}

static void mode_ftell(void)
{
	FILE *file = fopen(list, "r");
	long end;

	say("fseek", fseek(file, 0, SEEK_END));
	end = ftell(file);
	say("ftell", end);
	rewind(file);
	if (end >= 0 && end <= MOST)
		out(fread(buffer, 1, end, file));
}

static void mode_statread(void)
{
	int fd = opened();
	long got = read(fd, buffer, size_of(fd));

	out(got);
	say("read", got);
}

static void mode_statreadn(void)
{
	int fd = opened();
	long size = size_of(fd), total = 0, got;

	while (total < size && (got = read(fd, buffer + total, size - total)) > 0)
		total += got;
	out(total);
	say("total", total);
}

static void mode_stat(void)
{
	struct stat st;

	if (stat(list, &st))
		exit(1);
	printf("size %ld blocks %ld blksize %ld mode %o nlink %ld\n", (long)st.st_size,
	       (long)st.st_blocks, (long)st.st_blksize, st.st_mode, (long)st.st_nlink);
}

static void mode_statx(void)
{
	const int flags[] = { AT_STATX_SYNC_AS_STAT, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC };
	struct statx sx;
	int fd, i;

	for (i = 0; i < 3; i++) {
		say("statx", statx(AT_FDCWD, list, flags[i], STATX_SIZE, &sx));
		say("size", (long)sx.stx_size);
	}
	fd = opened();
	for (i = 0; i < 3; i++) {
		say("statx", statx(fd, "", flags[i] | AT_EMPTY_PATH, STATX_BASIC_STATS, &sx));
		say("size", (long)sx.stx_size);
	}
}

static void mode_fread(void)
{
	FILE *file = fopen(list, "r");
	long got;

	while ((got = fread(buffer, 1, number, file)) > 0)
		out(got);
	say("feof", !!feof(file));
}

static void mode_fgets(void)
{
	FILE *file = fopen(list, "r");
	long lines = 0;

	for (; fgets(buffer, 65536, file); lines++)
		out(strlen(buffer));
	say("lines", lines);
}

static void mode_readv(void)
{
	struct iovec parts[4] = { { buffer, 100 }, { buffer + 100, 5000 },
				  { buffer + 5100, 4096 }, { buffer + 9196, 60000 } };
	int fd = opened();
	long got;

	while ((got = readv(fd, parts, 4)) > 0) {
		printf("<%ld>", got);
		out(got);
	}
	say("end", got);
}

static void mode_pread(void)
{
	int fd = opened();
	long got, at = 0;

	for (; (got = pread(fd, buffer, number, at)) > 0; at += got) {
		printf("<%ld>", got);
		out(got);
	}
	say("end", got);
	say("position", lseek(fd, 0, SEEK_CUR));
}

static void mode_preadat(void)
{
	const long places[] = { 0, 1, 100, 4095, 4096, 4097, 8192, 12288, 40960, 20000, 0, 4096 };
	int fd = opened();

	for (int i = 0; i < 12; i++) {
		long got = pread(fd, buffer, number, places[i]);

		printf("<%ld:%ld>", places[i], got);
		out(got);
	}
	say("position", lseek(fd, 0, SEEK_CUR));
}

static void mode_seek(void)
{
	int fd = opened();

	say("SEEK_END", lseek(fd, 0, SEEK_END));
	say("SEEK_END -10", lseek(fd, -10, SEEK_END));
	say("SEEK_HOLE", lseek(fd, 0, SEEK_HOLE));
	say("SEEK_DATA", lseek(fd, 0, SEEK_DATA));
	say("SEEK_SET", lseek(fd, 5000, SEEK_SET));
	say("SEEK_CUR", lseek(fd, 10, SEEK_CUR));
	rest(fd, 4096);
}

static void mode_tailseek(void)
{
	int fd = opened();

	say("SEEK_END", lseek(fd, -4096, SEEK_END));
	rest(fd, 4096);
}

static void mode_fionread(void)
{
	int fd = opened(), bytes = -7;

	say("FIONREAD", ioctl(fd, FIONREAD, &bytes));
	printf("[bytes: %d]\n", bytes);
	say("read", read(fd, buffer, 4096));
	say("FIONREAD", ioctl(fd, FIONREAD, &bytes));
	printf("[bytes: %d]\n", bytes);
}

static void mode_fork(void)
{
	int fd = opened();

	out(read(fd, buffer, 3000));
	fflush(stdout);
	if (!fork()) {
		rest(fd, 4096);
		fflush(stdout);
		_exit(0);
	}
	wait(NULL);
	say("parent", read(fd, buffer, 100));
}

static void *in_thread(void *fd)
{
	rest(*(int *)fd, 65536);
	return NULL;
}

static void mode_thread(void)
{
	int fd = opened();
	pthread_t thread;

	pthread_create(&thread, NULL, in_thread, &fd);
	pthread_join(thread, NULL);
}

static void mode_exec(void)
{
	dup2(opened(), 0);
	execlp("cat", "cat", (char *)NULL);
}

union rights {
	char space[CMSG_SPACE(sizeof(int))];
	struct cmsghdr header;
};

static void mode_pass(void)
{
	union rights rights = { { 0 } };
	struct iovec byte = { buffer, 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1,
				  .msg_control = &rights, .msg_controllen = sizeof(rights) };
	int sockets[2], fd;

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets))
		exit(1);
	if (!fork()) {
		recvmsg(sockets[1], &message, 0);
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
		rest(fd, 4096);
		fflush(stdout);
		_exit(0);
	}
	fd = opened();
	rights.header.cmsg_level = SOL_SOCKET;
	rights.header.cmsg_type = SCM_RIGHTS;
	rights.header.cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(&rights.header), &fd, sizeof(fd));
	sendmsg(sockets[0], &message, 0);
	close(fd);
	wait(NULL);
}

static void mode_fadvise(void)
{
	int fd = opened();

	say("WILLNEED", posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
	say("readahead", readahead(fd, 0, 1 << 20));
	rest(fd, 4096);
}

static void mode_poll(void)
{
	int fd = opened();
	struct pollfd asked = { fd, POLLIN | POLLPRI, 0 };
	struct epoll_event event = { EPOLLIN, { 0 } };

	say("poll", poll(&asked, 1, 0));
	say("revents", asked.revents);
	say("epoll_ctl", epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, fd, &event));
}

static void mode_odirect(void)
{
	say("open", open(list, O_RDONLY | O_DIRECT) < 0 ? -1 : 0);
}

static void mode_append(void)
{
	int fd = open(list, O_WRONLY | O_APPEND);

	if (fd < 0) {
		say("open", fd);
		return;
	}
	say("write", write(fd, "no request\n", 11));
	say("position", lseek(fd, 0, SEEK_CUR));
}

static const struct {
	const char *name;
	void (*play)(void);
} modes[] = {
	{ "short", mode_short },	   { "zero", mode_zero },
	{ "once", mode_once },		   { "sendfile", mode_sendfile },
	{ "sendoff", mode_sendoff },	   { "cfr", mode_cfr },
	{ "splice", mode_splice },	   { "readsplice", mode_readsplice },
	{ "teesplice", mode_teesplice },   { "mmap-private", mode_mmap_private },
	{ "mmap-shared", mode_mmap_shared }, { "mmap-size", mode_mmap_size },
	{ "ftell", mode_ftell },	   { "statread", mode_statread },
	{ "statreadn", mode_statreadn },   { "stat", mode_stat },
	{ "statx", mode_statx },	   { "fread", mode_fread },
	{ "fgets", mode_fgets },	   { "readv", mode_readv },
	{ "pread", mode_pread },	   { "preadat", mode_preadat },
	{ "seek", mode_seek },		   { "tailseek", mode_tailseek },
	{ "fionread", mode_fionread },	   { "fork", mode_fork },
	{ "thread", mode_thread },	   { "exec", mode_exec },
	{ "pass", mode_pass },		   { "fadvise", mode_fadvise },
	{ "poll", mode_poll },		   { "odirect", mode_odirect },
	{ "append", mode_append },
};

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	list = argv[2];
	copy = argv[3];
	number = argc > 4 ? atol(argv[4]) : 0;
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		if (strcmp(argv[1], modes[i].name))
			continue;
		modes[i].play();
		return fflush(stdout) != 0;
	}
	fprintf(stderr, "reader: no mode %s\n", argv[1]);
	return 2;
}
