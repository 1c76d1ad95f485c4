/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * probe.c - plays a script of system calls against an IMA directory, one answer line per call.
 *
 * It runs inside a real kernel (static, no libraries) and on a mount of the emulator, so that the
 * same program made both answers. LANGUAGE.md describes the verbs.
 *
 *     gcc -O2 -static -pthread -o probe probe.c; ./probe DIR < script
 *     ./probe DIR FILES SOCKET < script
 *
 * A kernel measures by its policy what the script does. An emulator must be told: absolute paths
 * of the script are looked up below FILES, and what would be measured is written to SOCKET (a
 * descriptor), a line each, "measure NAME HEX" or the rest of a line "#emulator: ..."; a byte
 * comes back when it is done (playing.py).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <grp.h>
#include <unistd.h>

#define LINE 8192
#define WORDS 12
#define BUFFER (4u << 20)
#define SLOTS 64
#define WINDOW 128
#define OWNER 1234 /* the policy rule of the recordings: fowner=1234 */

struct script {
	char **line;
	size_t used, next;
};

struct call {
	char line[LINE];      /* as printed */
	char copy[LINE];      /* cut into words */
	char *word[WORDS];
	int slot;             /* of word 1 */
};

static const char *root;
static const char *files = "";
static int told = -1, unanswered;
static int fds[SLOTS];
static unsigned char buffer[BUFFER + 1];

static void put(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
}

static const char *name_of(int error)
{
	const char *name;

	if (!error)
		return "0";
	name = strerrorname_np(error);
	return name ? name : "?";
}

static void put_error(int result)
{
	put("%s", name_of(result < 0 ? errno : 0));
}

/* "ok" or the error of an open-like call */
static void put_opened(int fd, int error)
{
	put("%s", fd < 0 ? name_of(error) : "ok");
}

static void put_size(ssize_t size, int error)
{
	put("%zd %s", size, name_of(size < 0 ? error : 0));
}

static unsigned fnv1a(const unsigned char *data, ssize_t size)
{
	unsigned hash = 2166136261u;

	for (ssize_t i = 0; i < size; i++)
		hash = (hash ^ data[i]) * 16777619u;
	return hash;
}

static const char *locate(const char *file, char *out)
{
	if (file[0] == '/')
		snprintf(out, LINE, "%s%s", files, file);
	else
		snprintf(out, LINE, "%s/%s", root, file);
	return out;
}

static int slot_of(const char *word)
{
	int slot = word[0] && !word[1] ? word[0] - 'a' : 0;

	return slot < 0 || slot >= SLOTS ? 0 : slot;
}

static int fd_of(const char *word)
{
	return fds[slot_of(word)];
}

static int open_flags(const char *word)
{
	static const struct { char letter; int flag; } letters[] = {
		{'t', O_TRUNC}, {'a', O_APPEND}, {'c', O_CREAT}, {'n', O_NONBLOCK}, {'d', O_DIRECT},
		{'f', O_NOFOLLOW}, {'p', O_PATH}, {'x', O_EXCL}, {'y', O_DIRECTORY}, {'s', O_SYNC},
		{'m', O_NOATIME},
	};
	int flags = strstr(word, "rw") ? O_RDWR : word[0] == 'w' ? O_WRONLY : O_RDONLY;

	for (size_t i = 0; i < sizeof(letters) / sizeof(letters[0]); i++)
		if (strchr(word, letters[i].letter))
			flags |= letters[i].flag;
	return flags;
}

/* The next "quoted text" of the line from *cursor on, with \n \t \0 and \xHH escapes. */
static size_t quoted(const char **cursor, char *out)
{
	const char *p = strchr(*cursor, '"');
	size_t size = 0;

	if (!p) {
		*cursor += strlen(*cursor);
		return 0;
	}
	for (p++; *p && *p != '"'; p++) {
		if (*p != '\\' || !p[1]) {
			out[size++] = *p;
			continue;
		}
		p++;
		if (*p == 'x') {
			char hex[3] = {p[1], p[1] ? p[2] : 0, 0};

			out[size++] = (char)strtol(hex, NULL, 16);
			p += strlen(hex);
		} else {
			out[size++] = *p == 'n' ? '\n' : *p == 't' ? '\t' : *p == '0' ? 0 : *p;
		}
	}
	*cursor = *p ? p + 1 : p;
	return size;
}

static int slurp(const char *file, ssize_t *size)
{
	char path[LINE];
	ssize_t n;
	int error, fd = open(locate(file, path), O_RDONLY);

	*size = 0;
	if (fd < 0)
		return errno;
	while ((n = read(fd, buffer + *size, BUFFER - *size)) > 0)
		*size += n;
	error = n < 0 ? errno : 0;
	close(fd);
	return error;
}

static long newlines(ssize_t size)
{
	long lines = 0;

	for (ssize_t i = 0; i < size; i++)
		lines += buffer[i] == '\n';
	return lines;
}

static void put_stat(const struct stat *s, int result)
{
	if (result < 0)
		put("-1 %s", name_of(errno));
	else
		put("mode=%o uid=%d gid=%d size=%lld nlink=%ld blksize=%ld", s->st_mode, s->st_uid, s->st_gid,
		    (long long)s->st_size, (long)s->st_nlink, (long)s->st_blksize);
}

static void put_escaped(const unsigned char *data, ssize_t size)
{
	put("\"");
	for (ssize_t i = 0; i < size; i++) {
		if (data[i] == '\n')
			put("\\n");
		else if (data[i] < 32 || data[i] > 126 || data[i] == '"' || data[i] == '\\')
			put("\\x%02x", data[i]);
		else
			put("%c", data[i]);
	}
	put("\"");
}

/* ---- work done in another thread, which ends before the answer is printed */

struct job {
	char kind;
	const char *path, *data;
	int flags, fd, error;
	size_t size;
	ssize_t result;
};

static void *work(void *argument)
{
	struct job *job = argument;

	errno = 0;
	if (job->kind == 'o')
		job->result = open(job->path, job->flags, 0600);
	else if (job->kind == 'c')
		job->result = close(job->fd);
	else if (job->kind == 'w')
		job->result = write(job->fd, job->data, job->size);
	else
		job->result = read(job->fd, buffer, job->size);
	job->error = job->result < 0 ? errno : 0;
	return NULL;
}

static void in_thread(struct job *job)
{
	pthread_t thread;

	pthread_create(&thread, NULL, work, job);
	pthread_join(thread, NULL);
}

/* ---- the verbs */

static void do_open(struct call *c)
{
	char path[LINE];
	int fd = open(locate(c->word[2], path), open_flags(c->word[3]), 0600);

	fds[c->slot] = fd;
	put_opened(fd, errno);
}

static void do_thread_open(struct call *c)
{
	char path[LINE];
	struct job job = {.kind = 'o', .path = locate(c->word[2], path), .flags = open_flags(c->word[3])};

	in_thread(&job);
	fds[c->slot] = job.result;
	put_opened(job.result, job.error);
}

static void do_thread_close(struct call *c)
{
	struct job job = {.kind = 'c', .fd = fds[c->slot]};

	in_thread(&job);
	put("%s", name_of(job.error));
}

static void do_thread_write(struct call *c)
{
	char text[LINE];
	const char *cursor = c->line;
	struct job job = {.kind = 'w', .fd = fds[c->slot], .data = text};

	job.size = quoted(&cursor, text);
	in_thread(&job);
	put_size(job.result, job.error);
}

static void do_thread_read(struct call *c)
{
	struct job job = {.kind = 'r', .fd = fds[c->slot], .size = atoll(c->word[2])};

	in_thread(&job);
	put("%zd %s fnv=%08x", job.result, name_of(job.error), job.result > 0 ? fnv1a(buffer, job.result) : 0);
}

static void do_reopen(struct call *c)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd_of(c->word[2]));
	fd = open(path, open_flags(c->word[3]));
	fds[c->slot] = fd;
	put_opened(fd, errno);
}

static void do_openmany(struct call *c)
{
	static int many[1024];
	char path[LINE];
	int opened = 0, error = 0, wanted = atoi(c->word[3]);

	locate(c->word[1], path);
	while (opened < wanted && opened < 1024) {
		many[opened] = open(path, open_flags(c->word[2]));
		if (many[opened] < 0) {
			error = errno;
			break;
		}
		opened++;
	}
	for (int i = 0; i < opened; i++)
		close(many[i]);
	put("%d %s", opened, name_of(error));
}

static void do_close(struct call *c)
{
	put_error(close(fds[c->slot]));
}

static void do_dup(struct call *c)
{
	int fd = dup(fds[c->slot]);

	fds[slot_of(c->word[2])] = fd;
	put_opened(fd, errno);
}

static void do_write(struct call *c)
{
	char text[LINE];
	const char *cursor = c->line;
	size_t size = quoted(&cursor, text);
	ssize_t n;

	if (c->word[0][0] == 'p')
		n = pwrite(fds[c->slot], text, size, atoll(c->word[2]));
	else
		n = write(fds[c->slot], text, size);
	put_size(n, errno);
}

static void do_writev(struct call *c)
{
	static char texts[4][LINE];
	const char *cursor = c->line;
	struct iovec part[4];
	int parts = 0;

	while (parts < 4 && strchr(cursor, '"')) {
		part[parts].iov_base = texts[parts];
		part[parts].iov_len = quoted(&cursor, texts[parts]);
		parts++;
	}
	ssize_t n = writev(fds[c->slot], part, parts);

	put_size(n, errno);
}

static void do_badwrite(struct call *c)
{
	ssize_t n = write(fds[c->slot], (void *)8, atoll(c->word[2]));

	put_size(n, errno);
}

static void do_badread(struct call *c)
{
	ssize_t n = read(fds[c->slot], (void *)8, atoll(c->word[2]));

	put_size(n, errno);
}

static void put_read(ssize_t n)
{
	int error = errno;

	put("%zd %s fnv=%08x", n, name_of(n < 0 ? error : 0), n > 0 ? fnv1a(buffer, n) : 0);
}

static size_t at_most_buffer(const char *word)
{
	long long size = atoll(word);

	return size < 0 || size > (long long)BUFFER ? BUFFER : (size_t)size;
}

static void do_read(struct call *c)
{
	put_read(read(fds[c->slot], buffer, at_most_buffer(c->word[2])));
}

static void do_pread(struct call *c)
{
	put_read(pread(fds[c->slot], buffer, at_most_buffer(c->word[3]), atoll(c->word[2])));
}

static void do_readv(struct call *c)
{
	struct iovec part[2];
	ssize_t n;

	part[0].iov_base = buffer;
	part[0].iov_len = at_most_buffer(c->word[2]) / 2;
	part[1].iov_base = buffer + part[0].iov_len;
	part[1].iov_len = at_most_buffer(c->word[3]) / 2;
	n = readv(fds[c->slot], part, 2);
	put("%zd %s", n, name_of(n < 0 ? errno : 0));
}

static void do_text(struct call *c)
{
	ssize_t n = read(fds[c->slot], buffer, at_most_buffer(c->word[2]));

	put_size(n, errno);
	put(" ");
	put_escaped(buffer, n > 0 ? n : 0);
}

static void do_readall(struct call *c)
{
	ssize_t n, total = 0;
	int error;

	while ((n = read(fds[c->slot], buffer + total, BUFFER - total)) > 0)
		total += n;
	error = n < 0 ? errno : 0;
	put("%zd %s lines=%ld fnv=%08x", total, name_of(error), newlines(total), fnv1a(buffer, total));
}

/* chunks K SIZE: read to the end with SIZE bytes a call; how much each call gave, runs as SIZExTIMES */
static void do_chunks(struct call *c)
{
	size_t size = at_most_buffer(c->word[2]);
	ssize_t n, last = -1, total = 0;
	long times = 0, calls = 0;
	const char *comma = "";
	int error;

	put("sizes=");
	while ((n = read(fds[c->slot], buffer + total, size)) > 0) {
		total += n;
		if (size > (size_t)(BUFFER - total))
			size = BUFFER - total;
		calls++;
		if (n != last && times) {
			put(times > 1 ? "%s%zdx%ld" : "%s%zd", comma, last, times);
			comma = ",";
			times = 0;
		}
		last = n;
		times++;
	}
	error = n < 0 ? errno : 0;
	if (times)
		put(times > 1 ? "%s%zdx%ld" : "%s%zd", comma, last, times);
	put(" calls=%ld total=%zd %s fnv=%08x", calls, total, name_of(error), fnv1a(buffer, total));
}

static void do_lseek(struct call *c)
{
	static const struct { const char *name; int whence; } names[] = {
		{"end", SEEK_END}, {"cur", SEEK_CUR}, {"data", SEEK_DATA}, {"hole", SEEK_HOLE}, {"bad", 77},
	};
	int whence = SEEK_SET;
	long long position;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(c->word[3], names[i].name))
			whence = names[i].whence;
	position = lseek(fds[c->slot], atoll(c->word[2]), whence);
	put("%lld %s", position, name_of(position < 0 ? errno : 0));
}

static void do_fstat(struct call *c)
{
	struct stat s;

	put_stat(&s, fstat(fds[c->slot], &s));
}

static void do_stat(struct call *c)
{
	char path[LINE];
	struct stat s;

	put_stat(&s, stat(locate(c->word[1], path), &s));
}

static void do_lstat(struct call *c)
{
	char path[LINE], target[LINE];
	struct stat s;
	int result = lstat(locate(c->word[1], path), &s);

	put_stat(&s, result);
	if (!result && S_ISLNK(s.st_mode)) {
		ssize_t n = readlink(path, target, sizeof(target) - 1);

		if (n > 0)
			put(" -> %.*s", (int)n, target);
	}
}

static void do_readlink(struct call *c)
{
	char path[LINE], target[LINE];
	ssize_t n = readlink(locate(c->word[1], path), target, sizeof(target) - 1);

	if (n < 0)
		put("%s", name_of(errno));
	else
		put("%.*s", (int)n, target);
}

static void do_truncate(struct call *c)
{
	char path[LINE];

	put_error(truncate(locate(c->word[1], path), atoll(c->word[2])));
}

static void do_ftruncate(struct call *c)
{
	put_error(ftruncate(fds[c->slot], atoll(c->word[2])));
}

static void do_fsync(struct call *c)
{
	put_error(fsync(fds[c->slot]));
}

static void do_fdatasync(struct call *c)
{
	put_error(fdatasync(fds[c->slot]));
}

static void do_fallocate(struct call *c)
{
	put_error(fallocate(fds[c->slot], 0, 0, atoll(c->word[2])));
}

static void do_poll(struct call *c)
{
	struct pollfd p = {fds[c->slot], POLLIN | POLLOUT | POLLPRI, 0};
	int result = poll(&p, 1, 0);

	put("%d revents=%x", result, p.revents);
}

static void do_epoll(struct call *c)
{
	struct epoll_event event = {.events = EPOLLIN};
	int set = epoll_create1(0);

	put_error(epoll_ctl(set, EPOLL_CTL_ADD, fds[c->slot], &event));
	close(set);
}

static void do_mmap(struct call *c)
{
	int shared = !strcmp(c->word[2], "shared");
	void *map = mmap(NULL, 4096, PROT_READ, shared ? MAP_SHARED : MAP_PRIVATE, fds[c->slot], 0);

	put("%s", map == MAP_FAILED ? name_of(errno) : "ok");
	if (map != MAP_FAILED)
		munmap(map, 4096);
}

static void do_fionread(struct call *c)
{
	int bytes = -1, result = ioctl(fds[c->slot], FIONREAD, &bytes);

	put("%s %d", name_of(result < 0 ? errno : 0), bytes);
}

static void do_tcgets(struct call *c)
{
	put("%s", isatty(fds[c->slot]) ? "tty" : name_of(errno));
}

static void do_flock(struct call *c)
{
	put_error(flock(fds[c->slot], (!strcmp(c->word[2], "ex") ? LOCK_EX : LOCK_SH) | LOCK_NB));
}

static void do_setlk(struct call *c)
{
	struct flock lock = {.l_type = !strcmp(c->word[2], "ex") ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};

	put_error(fcntl(fds[c->slot], F_SETLK, &lock));
}

static void do_getfl(struct call *c)
{
	int flags = fcntl(fds[c->slot], F_GETFL);

	if (flags < 0)
		put("%s", name_of(errno));
	else
		put("%o", flags);
}

static void do_sendfile(struct call *c)
{
	ssize_t n = sendfile(fd_of(c->word[2]), fds[c->slot], NULL, atoll(c->word[3]));

	put_size(n, errno);
}

static void do_splice(struct call *c)
{
	int pair[2];
	ssize_t n;

	if (pipe(pair) < 0) {
		put("pipe %s", name_of(errno));
		return;
	}
	n = splice(fds[c->slot], NULL, pair[1], NULL, atoll(c->word[2]), 0);
	put_size(n, errno);
	close(pair[0]);
	close(pair[1]);
}

static void do_copyrange(struct call *c)
{
	ssize_t n = copy_file_range(fds[c->slot], NULL, fd_of(c->word[2]), NULL, atoll(c->word[3]), 0);

	put_size(n, errno);
}

static void do_access(struct call *c)
{
	char path[LINE];

	put_error(access(locate(c->word[1], path), atoi(c->word[2])));
}

static void do_unlink(struct call *c)
{
	char path[LINE];

	put_error(unlink(locate(c->word[1], path)));
}

static void do_mkdir(struct call *c)
{
	char path[LINE];

	put_error(mkdir(locate(c->word[1], path), 0755));
}

static void do_rmdir(struct call *c)
{
	char path[LINE];

	put_error(rmdir(locate(c->word[1], path)));
}

static void do_mknod(struct call *c)
{
	char path[LINE];

	put_error(mknod(locate(c->word[1], path), S_IFREG | 0600, 0));
}

static void do_two(struct call *c)
{
	char from[LINE], to[LINE];
	int result;

	locate(c->word[2], to);
	if (!strcmp(c->word[0], "symlink"))
		result = symlink(c->word[1], to);
	else if (!strcmp(c->word[0], "link"))
		result = link(locate(c->word[1], from), to);
	else
		result = rename(locate(c->word[1], from), to);
	put_error(result);
}

static void do_chmod(struct call *c)
{
	char path[LINE];

	put_error(chmod(locate(c->word[1], path), strtol(c->word[2], NULL, 8)));
}

static void do_chown(struct call *c)
{
	char path[LINE];

	locate(c->word[1], path);
	put_error((c->word[0][0] == 'l' ? lchown : chown)(path, atoi(c->word[2]), atoi(c->word[3])));
}

static void do_utime(struct call *c)
{
	char path[LINE];
	struct timespec times[2] = {{.tv_sec = atoll(c->word[2])}, {.tv_sec = atoll(c->word[2])}};

	put_error(utimensat(AT_FDCWD, locate(c->word[1], path), times, 0));
}

static void do_xattr(struct call *c)
{
	char path[LINE], value[256];
	ssize_t n;

	locate(c->word[1], path);
	if (c->word[0][0] == 's')
		n = setxattr(path, c->word[2], c->word[3], strlen(c->word[3]), 0);
	else if (c->word[0][0] == 'g')
		n = getxattr(path, c->word[2], value, sizeof(value));
	else
		n = listxattr(path, value, sizeof(value));
	put_size(n, errno);
}

static void do_setuid(struct call *c)
{
	int id = atoi(c->word[1]);

	put_error(setresuid(id, id, id));
}

static int set_capabilities(unsigned long long keep, int only_these)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return -1;
	for (int i = 0; i < 2; i++) {
		unsigned mask = (unsigned)(keep >> (32 * i));

		data[i].permitted &= mask;
		data[i].effective = only_these ? data[i].permitted : data[i].effective & mask;
		data[i].inheritable &= mask;
	}
	return syscall(SYS_capset, &header, data);
}

static void do_dropcap(struct call *c)
{
	(void)c;
	put_error(set_capabilities(~(1ull << CAP_SYS_ADMIN), 0));
}

/* become UID GID [CAP,CAP...]: no other groups, exactly these capabilities (by number) */
static void do_become(struct call *c)
{
	int uid = atoi(c->word[1]), gid = atoi(c->word[2]), result;
	unsigned long long keep = 0;

	for (char *p = c->word[3]; *p; p += *p == ',')
		keep |= 1ull << strtol(p, &p, 10);
	result = prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	result = result < 0 ? result : setgroups(0, NULL);
	result = result < 0 ? result : setresgid(gid, gid, gid);
	result = result < 0 ? result : setresuid(uid, uid, uid);
	result = result < 0 ? result : set_capabilities(keep, 1);
	put_error(result);
}

static void do_kill9(struct call *c)
{
	(void)c;
	put("\n");
	fflush(stdout);
	kill(getpid(), SIGKILL);
	pause();
}

static void do_statfs(struct call *c)
{
	struct statfs f;
	int result = statfs(root, &f);

	(void)c;
	put("%s type=%lx bsize=%ld namelen=%ld", name_of(result < 0 ? errno : 0), (long)f.f_type,
	    (long)f.f_bsize, (long)f.f_namelen);
}

static void do_number(struct call *c)
{
	ssize_t size;
	int error = slurp(!strcmp(c->word[0], "count") ? "runtime_measurements_count" : "violations", &size);

	if (size && buffer[size - 1] == '\n')
		size--;
	put("%s %.*s", name_of(error), (int)size, buffer);
}

static void do_lines(struct call *c)
{
	ssize_t size;
	int error = slurp(c->word[1], &size);

	put("%s %ld lines %zd bytes", name_of(error), newlines(size), size);
}

static void do_show(struct call *c)
{
	ssize_t size;
	int error = slurp(c->word[1], &size);

	buffer[size] = 0;
	put("%s\n%s", name_of(error), (char *)buffer);
}

/* Wait until all that was told is done, but for "left" of it; "line" is the last of it. */
static void settle(int left, const char *line)
{
	char bytes[WINDOW];

	while (unanswered > left) {
		ssize_t n = read(told, bytes, unanswered - left);

		if (n <= 0) {
			fprintf(stderr, "probe: not measured: %.200s\n", line);
			exit(1);
		}
		unanswered -= n;
	}
}

/* One line to who measures for us. */
static void tell(const char *line, size_t size)
{
	if (write(told, line, size) != (ssize_t)size) {
		perror("probe: nobody measures");
		exit(1);
	}
	unanswered++;
	settle(WINDOW - 1, line);
}

static void tell_content(const char *name, const char *content, size_t size)
{
	static char line[4 * LINE];
	size_t used = snprintf(line, sizeof(line), "measure %s ", name);

	for (size_t i = 0; i < size; i++)
		used += sprintf(line + used, "%02x", (unsigned char)content[i]);
	line[used++] = '\n';
	tell(line, used);
}

/* A file whose directories exist, and are made where the script's files are below FILES. */
static const char *prepare(const char *name, char *path)
{
	locate(name, path);
	for (char *slash = path + strlen(files); *files && (slash = strchr(slash + 1, '/'));) {
		*slash = 0;
		mkdir(path, 0755);
		*slash = '/';
	}
	return path;
}

/*
 * What a file of the tests' directory is: content, its owner for the policy rule, one read.
 * "name" is what an emulator is told: a path of 4095 bytes has no room below FILES.
 */
static int measure_as(const char *name, const char *file, const char *content, size_t size)
{
	char byte, path[LINE];
	int fd = open(prepare(file, path), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd >= 0) {
		if (write(fd, content, size) < 0 || fchown(fd, OWNER, 0) < 0)
			perror(path);
		close(fd);
	}
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	if (read(fd, &byte, 1) < 0)
		perror(path);
	close(fd);
	if (told >= 0)
		tell_content(name, content, size);
	return 0; /* and the caller settles */
}

static int measure(const char *file, const char *content, size_t size)
{
	int result = measure_as(file, file, content, size);

	settle(0, file);
	return result;
}

static void do_measure(struct call *c)
{
	/* the first occurrence of the third word in the whole line, to its end: as recorded */
	const char *content = strstr(c->line, c->word[2]);

	put_error(measure(c->word[1], content ? content : "", content ? strlen(content) : 0));
}

static void do_measuren(struct call *c)
{
	long wanted = atol(c->word[2]), bad = 0;
	char content[LINE];

	for (long i = 0; i < wanted; i++) {
		int size = snprintf(content, sizeof(content), "%s-%ld\n", c->word[3], i);

		bad += measure_as(c->word[1], c->word[1], content, size) < 0;
	}
	settle(0, c->word[1]);
	put("done %ld bad %ld", wanted, bad);
}

/* measurelong BASE SIZE TEXT: a file whose absolute path has SIZE bytes, in directories below BASE */
static void do_measurelong(struct call *c)
{
	static char path[LINE], shorter[LINE];
	size_t size = atol(c->word[2]), used = snprintf(path, sizeof(path), "%s", c->word[1]);

	snprintf(shorter, sizeof(shorter), "%.200s/long-name", c->word[1]);
	if (!*files)
		mkdir(path, 0755);
	while (used < size && size < LINE - 1) {
		path[used++] = '/';
		for (int i = 0; used < size && i < 200; i++)
			path[used++] = 'n';
		if (size - used == 1) /* no path ends in a slash */
			path[used++] = 'n';
		path[used] = 0;
		if (used < size && !*files)
			mkdir(path, 0755);
	}
	put_error(measure_as(path, *files ? shorter : path, c->word[3], strlen(c->word[3])));
	settle(0, path);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* ls: sorted names. lsorder: as the directory gives them, with their d_type */
static void do_ls(struct call *c)
{
	int sorted = !strcmp(c->word[0], "ls"), used = 0;
	DIR *directory = opendir(root);
	struct dirent *entry;
	char *names[256];

	if (!directory) {
		put("%s", name_of(errno));
		return;
	}
	while ((entry = readdir(directory)) && used < 256) {
		if (sorted && entry->d_name[0] == '.')
			continue;
		if (asprintf(&names[used], sorted ? "%s" : "%s:%d", entry->d_name, entry->d_type) < 0)
			break;
		used++;
	}
	closedir(directory);
	if (sorted)
		qsort(names, used, sizeof(names[0]), by_name);
	for (int i = 0; i < used; i++) {
		put("%s%s", i ? " " : "", names[i]);
		free(names[i]);
	}
}

static void do_slab(struct call *c)
{
	FILE *info = fopen("/proc/meminfo", "r");
	char line[128];

	(void)c;
	while (info && fgets(line, sizeof(line), info))
		if (!strncmp(line, "Slab:", 5) || !strncmp(line, "SUnreclaim:", 11)) {
			line[strcspn(line, "\n")] = 0;
			put("%s ", line);
		}
	if (info)
		fclose(info);
}

static void do_echo(struct call *c)
{
	(void)c;
}

static const struct {
	const char *name;
	void (*run)(struct call *c);
} verbs[] = {
	{"open", do_open}, {"thread-open", do_thread_open}, {"thread-close", do_thread_close},
	{"thread-write", do_thread_write}, {"thread-read", do_thread_read}, {"reopen", do_reopen},
	{"openmany", do_openmany}, {"close", do_close}, {"dup", do_dup}, {"write", do_write},
	{"pwrite", do_write}, {"writev", do_writev}, {"badwrite", do_badwrite}, {"badread", do_badread},
	{"read", do_read}, {"pread", do_pread}, {"readv", do_readv}, {"text", do_text},
	{"readall", do_readall}, {"chunks", do_chunks}, {"lseek", do_lseek}, {"fstat", do_fstat},
	{"stat", do_stat}, {"lstat", do_lstat}, {"readlink", do_readlink}, {"truncate", do_truncate},
	{"ftruncate", do_ftruncate}, {"fsync", do_fsync}, {"fdatasync", do_fdatasync},
	{"fallocate", do_fallocate}, {"poll", do_poll}, {"epoll", do_epoll}, {"mmap", do_mmap},
	{"fionread", do_fionread}, {"tcgets", do_tcgets}, {"flock", do_flock}, {"setlk", do_setlk},
	{"getfl", do_getfl}, {"sendfile", do_sendfile}, {"splice", do_splice}, {"copyrange", do_copyrange},
	{"access", do_access}, {"unlink", do_unlink}, {"mkdir", do_mkdir}, {"rmdir", do_rmdir},
	{"mknod", do_mknod}, {"rename", do_two}, {"link", do_two}, {"symlink", do_two},
	{"chmod", do_chmod}, {"chown", do_chown}, {"lchown", do_chown}, {"utime", do_utime},
	{"setxattr", do_xattr}, {"getxattr", do_xattr}, {"listxattr", do_xattr}, {"setuid", do_setuid},
	{"dropcap", do_dropcap}, {"become", do_become}, {"kill9", do_kill9}, {"statfs", do_statfs},
	{"count", do_number}, {"violations", do_number}, {"lines", do_lines}, {"show", do_show},
	{"measure", do_measure}, {"measuren", do_measuren}, {"measurelong", do_measurelong},
	{"ls", do_ls}, {"lsorder", do_ls}, {"slab", do_slab}, {"echo", do_echo},
};

static void play(struct script *script, int depth);

static void play_fork(struct script *script, int depth)
{
	struct script block = {.line = script->line + script->next, .used = 0, .next = 0};
	pid_t child;

	put("child\n");
	fflush(stdout);
	while (script->next < script->used) {
		const char *line = script->line[script->next++];

		if (line[strspn(line, " ")] == '}')
			break;
		block.used++;
	}
	child = fork();
	if (!child) {
		play(&block, depth + 1);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	put("%*sendfork\n", depth * 2, "");
}

static void play(struct script *script, int depth)
{
	static char nothing[] = "";

	while (script->next < script->used) {
		struct call c = {0};
		const char *line = script->line[script->next++];
		size_t used = 0, verb;
		char *rest;

		if (depth)
			line += strspn(line, " ");
		if (told >= 0 && !strncmp(line, "#emulator: ", 11)) {
			snprintf(c.line, sizeof(c.line), "%s\n", line + 11);
			tell(c.line, strlen(c.line));
			settle(0, line);
		}
		if (!*line || *line == '#')
			continue;
		snprintf(c.line, sizeof(c.line), "%s", line);
		snprintf(c.copy, sizeof(c.copy), "%s", line);
		for (char *w = strtok_r(c.copy, " \t", &rest); w && used < WORDS; w = strtok_r(NULL, " \t", &rest))
			c.word[used++] = w;
		while (used < WORDS)
			c.word[used++] = nothing;
		c.slot = slot_of(c.word[1]);
		put("%*s%s -> ", depth * 2, "", c.line);
		fflush(stdout);
		if (!strcmp(c.word[0], "fork")) {
			play_fork(script, depth);
			fflush(stdout);
			continue;
		}
		errno = 0;
		for (verb = 0; verb < sizeof(verbs) / sizeof(verbs[0]); verb++)
			if (!strcmp(c.word[0], verbs[verb].name))
				break;
		if (verb < sizeof(verbs) / sizeof(verbs[0]))
			verbs[verb].run(&c);
		else
			put("?");
		put("\n");
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	struct script script = {0};
	char line[LINE];

	if (argc != 2 && argc != 4) {
		fprintf(stderr, "usage: %s DIR [FILES SOCKET] < script\n", argv[0]);
		return 2;
	}
	root = argv[1];
	if (argc == 4) {
		files = argv[2];
		told = atoi(argv[3]);
	}
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		script.line = realloc(script.line, (script.used + 1) * sizeof(char *));
		script.line[script.used++] = strdup(line);
	}
	play(&script, 0);
	return 0;
}
