// SPDX-License-Identifier: GPL-2.0-only OR MIT
// rings aio|uring FILE SIZE: copies FILE to stdout by asynchronous reads of SIZE bytes, one
// after the other, until one gives 0. Status 2: this kernel has no such calls.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *buffer;

static void fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	exit(error == ENOSYS || error == EPERM ? 2 : 1);
}

static void put(long count)
{
	for (long done = 0; done < count;) {
		ssize_t wrote = write(1, buffer + done, count - done);

		if (wrote < 0)
			fail("write", errno);
		done += wrote;
	}
}

static void by_aio(int fd, size_t size)
{
	aio_context_t context = 0;
	long long at = 0;

	if (syscall(SYS_io_setup, 1, &context))
		fail("io_setup", errno);
	for (;;) {
		struct iocb block = {
			.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd,
			.aio_buf = (unsigned long)buffer, .aio_nbytes = size, .aio_offset = at,
		};
		struct iocb *blocks = &block;
		struct io_event event;

		if (syscall(SYS_io_submit, context, 1, &blocks) != 1)
			fail("io_submit", errno);
		if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
			fail("io_getevents", errno);
		if (event.res < 0)
			fail("aio read", -event.res);
		if (!event.res)
			return;
		put(event.res);
		at += event.res;
	}
}

static void by_uring(int fd, size_t size)
{
	struct io_uring_params p;
	long long at = 0;
	int ring;

	memset(&p, 0, sizeof(p));
	ring = syscall(SYS_io_uring_setup, 1, &p);
	if (ring < 0)
		fail("io_uring_setup", errno);
	char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE,
			MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
			PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
					MAP_SHARED, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
		fail("mmap", errno);
	unsigned int *tail = (unsigned int *)(sq + p.sq_off.tail);
	unsigned int *array = (unsigned int *)(sq + p.sq_off.array);
	unsigned int *head = (unsigned int *)(cq + p.cq_off.head);
	unsigned int mask = *(unsigned int *)(cq + p.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	for (;;) {
		memset(sqe, 0, sizeof(*sqe));
		sqe->opcode = IORING_OP_READ;
		sqe->fd = fd;
		sqe->addr = (unsigned long)buffer;
		sqe->len = size;
		sqe->off = at;
		array[*tail & *(unsigned int *)(sq + p.sq_off.ring_mask)] = 0;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
			fail("io_uring_enter", errno);
		int result = cqes[*head & mask].res;

		__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
		if (result < 0)
			fail("io_uring read", -result);
		if (!result)
			return;
		put(result);
		at += result;
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 64;
	size_t size = strtoul(argv[3], NULL, 0);
	int fd = open(argv[2], O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail("open", errno);
	buffer = malloc(size);
	if (!buffer)
		fail("malloc", errno);
	if (!strcmp(argv[1], "aio"))
		by_aio(fd, size);
	else
		by_uring(fd, size);
	return 0;
}
