/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The rules by which the emulator serves a list, on a bare /dev/fuse: what do they make of each
 * call on this machine's kernel? Prints "CALL ANSWER" lines; twin DIRECTORY, or as /init of a
 * machine of its own. See tests/conformance/test_twin.py.
 *
 * The rules: lookups answer a huge size, stat answers 0 by a reply that an invalidation has made
 * stale for i_size; READ is answered for direct reads only, GETATTR with a handle (lseek) and
 * LSEEK are EINVAL; no readahead; O_TRUNC arrives as SETATTR.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define HIDDEN 0x7ffff000
#define LENGTH 20000
#define PIECE 4000

static char content[LENGTH];
static int device;

/* The server's side */

static void answer(uint64_t unique, int error, void *data, size_t length)
{
	struct fuse_out_header head = { sizeof(head) + length, -error, unique };
	struct iovec parts[2] = { { &head, sizeof(head) }, { data, length } };

	if (writev(device, parts, 2) < 0 && errno != ENOENT)
		_exit(3);
}

static void attributes(struct fuse_attr *attr, uint64_t node, uint64_t size)
{
	memset(attr, 0, sizeof(*attr));
	attr->ino = node;
	attr->nlink = 1;
	attr->blksize = 4096;
	attr->mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
	attr->size = node == FUSE_ROOT_ID ? 0 : size;
}

static void init(uint64_t unique, struct fuse_init_in *in)
{
	struct fuse_init_out out = { .major = 7, .minor = in->minor < 31 ? in->minor : 31 };

	out.flags = in->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES);
	out.max_write = 131072;
	answer(unique, 0, &out, sizeof(out));
}

static void lookup(uint64_t unique, const char *name)
{
	struct fuse_entry_out out = { .nodeid = 2 };

	attributes(&out.attr, 2, HIDDEN);
	if (strcmp(name, "list"))
		answer(unique, ENOENT, NULL, 0);
	else
		answer(unique, 0, &out, sizeof(out));
}

static void getattr(uint64_t unique, uint64_t node, struct fuse_getattr_in *in)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_inode_out which;
	} stale = { { sizeof(stale), FUSE_NOTIFY_INVAL_INODE, 0 }, { node, -1, 0 } };
	struct fuse_attr_out out = { 0 };

	if (node != FUSE_ROOT_ID && in->getattr_flags & FUSE_GETATTR_FH) {
		answer(unique, EINVAL, NULL, 0);
		return;
	}
	if (node != FUSE_ROOT_ID && write(device, &stale, sizeof(stale)) < 0 && errno != ENOENT)
		_exit(4);
	attributes(&out.attr, node, 0);
	answer(unique, 0, &out, sizeof(out));
}

static void setattr(uint64_t unique, uint64_t node)
{
	struct fuse_attr_out out = { 0 };

	attributes(&out.attr, node, HIDDEN);
	answer(unique, 0, &out, sizeof(out));
}

static void reading(uint64_t unique, struct fuse_read_in *in)
{
	size_t left = in->offset < LENGTH ? LENGTH - in->offset : 0;
	size_t length = in->size < left ? in->size : left;

	if (!(in->read_flags & FUSE_READ_LOCKOWNER)) {
		answer(unique, EINVAL, NULL, 0);
		return;
	}
	/* Short, as a seq_file is. */
	answer(unique, 0, content + in->offset, length < PIECE ? length : PIECE);
}

static void serve(struct fuse_in_header *head, void *body)
{
	struct fuse_open_out opened = { .fh = 7, .open_flags = FOPEN_DIRECT_IO };
	struct fuse_write_out written = { 0 };

	switch (head->opcode) {
	case FUSE_INIT: return init(head->unique, body);
	case FUSE_LOOKUP: return lookup(head->unique, body);
	case FUSE_GETATTR: return getattr(head->unique, head->nodeid, body);
	case FUSE_SETATTR: return setattr(head->unique, head->nodeid);
	case FUSE_OPEN: return answer(head->unique, 0, &opened, sizeof(opened));
	case FUSE_READ: return reading(head->unique, body);
	case FUSE_WRITE:
		written.size = ((struct fuse_write_in *)body)->size;
		return answer(head->unique, 0, &written, sizeof(written));
	case FUSE_LSEEK: return answer(head->unique, EINVAL, NULL, 0);
	case FUSE_FLUSH:
	case FUSE_RELEASE: return answer(head->unique, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT: return;
	default: return answer(head->unique, ENOSYS, NULL, 0);
	}
}

static void served(void)
{
	static char request[1 << 20];

	for (;;) {
		ssize_t got = read(device, request, sizeof(request));

		if (got > 0)
			serve((void *)request, request + sizeof(struct fuse_in_header));
		else if (errno != EINTR && errno != ENOENT && errno != EAGAIN)
			_exit(0); /* unmounted */
	}
}

/* The client's side */

static void tell(const char *call, long result)
{
	if (result < 0)
		printf("%s %s\n", call, strerrorname_np(errno));
	else
		printf("%s %ld\n", call, result);
}

static long all_by_sendfile(int fd, int into)
{
	long got, total = 0;

	while ((got = sendfile(into, fd, NULL, 1 << 20)) > 0)
		total += got;
	return total ? total : got;
}

static long all_by_splice(int fd)
{
	long got, total = 0;
	static char taken[65536];
	int ends[2];

	if (pipe(ends))
		return -1;
	while ((got = splice(fd, NULL, ends[1], NULL, 65536, 0)) > 0) {
		if (read(ends[0], taken, got) != got || memcmp(taken, content + total, got))
			_exit(5);
		total += got;
	}
	close(ends[0]);
	close(ends[1]);
	return total ? total : got;
}

static long all_by_read(int fd)
{
	static char taken[65536];
	long got, total = 0;

	while ((got = read(fd, taken, sizeof(taken))) > 0) {
		if (memcmp(taken, content + total, got))
			_exit(6);
		total += got;
	}
	return total ? total : got;
}

static void ask(const char *path, const char *copy)
{
	int fd = open(path, O_RDONLY), other, into = open(copy, O_RDWR | O_CREAT, 0600);
	static char piece[65536];
	struct stat st;

	tell("open", fd < 0 ? fd : 0);
	tell("stat", stat(path, &st) ? -1 : st.st_size);
	tell("fstat", fstat(fd, &st) ? -1 : st.st_size);
	tell("read", read(fd, piece, sizeof(piece)));
	lseek(fd, 0, SEEK_SET);
	tell("reads", all_by_read(fd));
	tell("SEEK_END", lseek(fd, 0, SEEK_END));
	tell("SEEK_HOLE", lseek(fd, 0, SEEK_HOLE));
	tell("SEEK_DATA", lseek(fd, 0, SEEK_DATA));
	lseek(fd, 0, SEEK_SET);
	tell("splice", all_by_splice(fd));
	lseek(fd, 0, SEEK_SET);
	tell("sendfile", all_by_sendfile(fd, into));
	tell("mmap-shared", mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
	tell("mmap-private", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
	other = open(path, O_RDWR | O_TRUNC);
	tell("truncating-write", write(other, "A\n", 2));
	lseek(fd, 0, SEEK_SET);
	tell("splice-after-truncation", all_by_splice(fd));
	tell("fstat-after-truncation", fstat(fd, &st) ? -1 : st.st_size);
	close(other);
	close(fd);
}

static int run(const char *directory)
{
	char options[100], path[4096], copy[4096];
	pid_t server;

	for (int i = 0; i < LENGTH; i++)
		content[i] = 'a' + i % 26;
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (device < 0 || mount("twin", directory, "fuse.twin", MS_NOSUID | MS_NODEV, options)) {
		perror("twin: fuse");
		return 1;
	}
	server = fork();
	if (!server)
		served();
	close(device);
	snprintf(path, sizeof(path), "%s/list", directory);
	snprintf(copy, sizeof(copy), "%s.copy", directory);
	ask(path, copy);
	unlink(copy);
	umount2(directory, MNT_DETACH);
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	return 0;
}

/* A machine of its own: nothing but this program, and fuse.ko where FUSE is a module. */
static void machine(void)
{
	int module;

	mkdir("/dev", 0755);
	mkdir("/tmp", 0755);
	mkdir("/tmp/twin", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	dup2(open("/dev/console", O_RDWR), 1);
	dup2(1, 2);
	module = open("/fuse.ko", O_RDONLY);
	if (module >= 0 && syscall(SYS_finit_module, module, "", 0))
		perror("twin: fuse.ko");
	puts("TWIN BEGINS");
	run("/tmp/twin");
	puts("TWIN ENDS");
	fflush(stdout);
	reboot(RB_POWER_OFF);
}

int main(int argc, char **argv)
{
	if (getpid() == 1)
		machine();
	return argc == 2 ? run(argv[1]) : 2;
}
