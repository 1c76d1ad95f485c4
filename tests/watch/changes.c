// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Files that change while they are open: one step per line of standard input, see changes.script.
 * Built static, so that a kernel in a machine of its own can run it too. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 5

static char *word[WORDS];
static char *mapped;

static int is(const char *name)
{
	return !strcmp(word[0], name);
}

static int number(int i)
{
	return atoi(word[i]);
}

static void check(long result)
{
	if (result < 0) {
		printf("%s %s: %s\n", word[0], word[1], strerrorname_np(errno));
		fflush(stdout);
	}
}

static int flags(const char *name)
{
	int found = strchr(name, 'r') ? (strchr(name, 'w') ? O_RDWR : O_RDONLY) : O_WRONLY;

	found |= strchr(name, 'a') ? O_APPEND : 0;
	found |= strchr(name, 't') ? O_TRUNC : 0;
	found |= strchr(name, 'c') ? O_CREAT : 0;
	return found | (strchr(name, 'x') ? O_EXCL : 0);
}

static void open_as(int fd, const char *path, int how)
{
	int found = open(path, how, 0644);

	check(found);
	if (found >= 0 && found != fd) {
		check(dup2(found, fd));
		close(found);
	}
}

static void make(const char *path, const char *content)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	check(fd);
	check(write(fd, content, strlen(content)));
	check(write(fd, "\n", 1));
	close(fd);
}

static void read_byte(const char *path)
{
	char byte;
	int fd = open(path, O_RDONLY);

	check(fd);
	check(read(fd, &byte, 1));
	close(fd);
}

/* What another process does: it opens, and has gone afterwards. */
static int by_another(void)
{
	int status;
	pid_t child;

	if (!is("read") && !is("append") && !is("ftruncated") && !is("make") && !is("emptied"))
		return 0;
	child = fork();
	if (child) {
		check(waitpid(child, &status, 0));
		return 1;
	}
	if (is("read")) {
		read_byte(word[1]);
	} else if (is("make")) {
		make(word[1], word[2]);
	} else if (is("append")) {
		open_as(99, word[1], O_WRONLY | O_APPEND);
		check(write(99, word[2], strlen(word[2])));
	} else if (is("ftruncated")) {
		open_as(99, word[1], O_WRONLY);
		check(ftruncate(99, number(2)));
	} else {
		open_as(99, word[1], O_WRONLY | O_TRUNC);
	}
	_exit(0);
}

static void step(void)
{
	if (by_another())
		return;
	if (is("open"))
		open_as(number(1), word[2], flags(word[3]));
	else if (is("close"))
		check(close(number(1)));
	else if (is("write"))
		check(write(number(1), word[2], strlen(word[2])));
	else if (is("pwrite"))
		check(pwrite(number(1), word[3], strlen(word[3]), number(2)));
	else if (is("zeros"))
		check(write(number(1), calloc(1, number(2)), number(2)));
	else if (is("ftruncate"))
		check(ftruncate(number(1), number(2)));
	else if (is("truncate"))
		check(truncate(word[1], number(2)));
	else if (is("fallocate"))
		check(fallocate(number(1), number(2), number(3), number(4)));
	else if (is("map"))
		mapped = mmap(0, 4096, PROT_READ | (word[2][0] == 'w' ? PROT_WRITE : 0), MAP_SHARED,
			      number(1), 0);
	else if (is("store"))
		memcpy(mapped, word[1], strlen(word[1]));
	else if (is("unmap"))
		check(munmap(mapped, 4096));
	else if (is("rename"))
		check(rename(word[1], word[2]));
	else if (is("link"))
		check(link(word[1], word[2]));
	else if (is("unlink"))
		check(unlink(word[1]));
	else if (is("chmod"))
		check(chmod(word[1], number(2)));
	else if (is("chown"))
		check(chown(word[1], number(2), number(2)));
	else if (is("touch"))
		check(utimensat(AT_FDCWD, word[1], 0, 0));
	else if (is("wait"))
		usleep(50000);
	else
		printf("%s: unknown\n", word[0]);
}

int main(void)
{
	char line[512];

	while (fgets(line, sizeof(line), stdin)) {
		char *rest = line[0] == '#' ? 0 : strtok(line, "\n");

		memset(word, 0, sizeof(word));
		word[0] = rest ? strtok(rest, " ") : 0;
		for (int i = 1; i < WORDS && word[i - 1]; i++)
			word[i] = strtok(0, " ");
		if (word[0])
			step();
	}
	return 0;
}
