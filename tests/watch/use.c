// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* One use of a file, as some user: use UID EUID WHAT PATH...
 * Built static, so that a kernel in a machine of its own can run it too. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(1);
}

static int opened(const char *path, int flags)
{
	int fd = open(path, flags, 0644);

	if (fd < 0)
		fail(path);
	return fd;
}

static void hear(int fd)
{
	char byte;

	if (read(fd, &byte, 1) < 0)
		fail("read");
}

int main(int argc, char **argv)
{
	const char *what = argv[3], *path = argv[4];
	uid_t uid = atoi(argv[1]), euid = atoi(argv[2]);
	int fd, other;

	if (argc < 5)
		return 2;
	if (setresgid(uid, euid, euid) || setresuid(uid, euid, euid))
		fail("setresuid");
	if (!strcmp(what, "exec")) {
		execv(path, argv + 4);
		fail(path);
	} else if (!strcmp(what, "read")) {
		hear(opened(path, O_RDONLY));
	} else if (!strcmp(what, "path")) {
		opened(path, O_PATH);
	} else if (!strcmp(what, "direct")) {
		opened(path, O_RDONLY | O_DIRECT);
	} else if (!strcmp(what, "openat2")) {
		struct open_how how = { .flags = O_RDONLY };

		if (syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how)) < 0)
			fail(path);
	} else if (!strcmp(what, "rdwr")) {
		opened(path, O_RDWR);
	} else if (!strcmp(what, "new")) {
		opened(path, O_RDWR | O_CREAT);
	} else if (!strcmp(what, "append")) {
		fd = opened(path, O_WRONLY | O_APPEND);
		if (write(fd, "more\n", 5) != 5)
			fail("write");
	} else if (!strcmp(what, "truncate")) {
		if (truncate(path, 3))
			fail("truncate");
	} else if (!strcmp(what, "map")) {
		fd = opened(path, O_RDONLY);
		if (mmap(0, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED)
			fail("mmap");
	} else if (!strcmp(what, "open_writers")) {
		other = opened(path, O_WRONLY);
		for (int i = 0; i < 2; i++) {
			fd = opened(path, O_RDONLY);
			hear(fd);
			close(fd);
		}
		if (write(other, "by a writer\n", 12) != 12)
			fail("write");
		/* Still open: a kernel measures what it was when the last writer closes. */
		hear(opened(path, O_RDONLY));
		close(other);
		hear(opened(path, O_RDONLY));
	} else if (!strcmp(what, "ToMToU")) {
		fd = opened(path, O_RDONLY);
		close(opened(path, O_WRONLY));
		close(opened(path, O_WRONLY));
		close(fd);
		close(opened(path, O_WRONLY));
	} else if (!strcmp(what, "deleted")) {
		fd = opened(path, O_PATH | O_CLOEXEC);
		if (unlink(path))
			fail("unlink");
		fexecve(fd, argv + 4, environ);
		fail("fexecve");
	} else {
		return 2;
	}
	return 0;
}
