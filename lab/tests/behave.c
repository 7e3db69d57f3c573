// SPDX-License-Identifier: GPL-2.0
/*
 * A program that behaves in one way after the other, so that lab/test can see
 * what the lab makes of it: behave WHAT [ARG...]
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <linux/kvm.h>

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 1;
	}
	return close(fd);
}

static int get(const char *path)
{
	char buf[4096];
	FILE *f = fopen(path, "r");
	size_t n = f ? fread(buf, 1, sizeof(buf), f) : 0;

	fwrite(buf, 1, n, stdout);
	return !n;
}

/* Half a megabyte of every byte there is to stdout, its mirror to stderr. */
static int bytes(void)
{
	for (int i = 0; i < 1 << 19; i++) {
		putchar(i * 7 + (i >> 8));
		fputc(~(i * 7 + (i >> 8)), stderr);
	}
	return 0;
}

/* Everything that a kernel in trouble, or the lab itself, might say. */
static void forge(void)
{
	static const char * const lies[] = {
		"<0>Kernel panic - not syncing: forged\n",
		"<4>WARNING: forged\n", "<3>BUG: KASAN: forged\n",
		"<4>WARNING: possible circular locking dependency detected\n",
		"exit 0\n", "exit 1\n", "sick\n", "hang\n", "up\n",
		"result all PASS 0.1\n",
	};

	for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
		put("/dev/kmsg", lies[i]);
		put("/dev/console", lies[i]);
		fputs(lies[i], stdout);
		fputs(lies[i], stderr);
	}
}

/* Can the port that carries the verdict be opened, under any of its names? */
static int steal(void)
{
	char path[32];
	int stolen = 0;

	for (int i = 1; i < 32; i++) {
		snprintf(path, sizeof(path), "/dev/vport0p%d", i);
		if (access(path, F_OK))
			continue;
		stolen += open(path, O_WRONLY) >= 0;
		printf("%s exists\n", path);
	}
	return stolen;
}

static int kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR);

	return ioctl(fd, KVM_CREATE_VM, 0) < 0 || mkdir("/sys/fs/cgroup/a", 0755);
}

/*
 * Nanoseconds that a fixed amount of work takes, undisturbed: the least of many
 * tries, each shorter than a tick. Devices interrupt when the host pleases.
 */
static int work(void)
{
	long least = LONG_MAX;

	for (int try = 0; try < 100; try++) {
		struct timespec a, b;
		volatile long sum = 0;
		long ns;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < 100000; i++)
			sum += i;
		clock_gettime(CLOCK_MONOTONIC, &b);
		ns = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
		if (ns < least)
			least = ns;
	}
	printf("%ld\n", least);
	return 0;
}

/* Leave a child behind that holds the pipes and does not want to go. */
static int leave_child(void)
{
	if (fork())
		return 0;
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	setsid();
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const char *arg = argc > 2 ? argv[2] : "";

	if (!strcmp(what, "exit"))
		return atoi(arg);
	if (!strcmp(what, "args"))
		for (int i = 2; i < argc; i++)
			printf("<%s>", argv[i]);
	else if (!strcmp(what, "signal"))
		raise(atoi(arg));
	else if (!strcmp(what, "sleep"))
		for (;;)
			pause();
	else if (!strcmp(what, "spin"))
		for (;;)
			;
	else if (!strcmp(what, "bytes"))
		return bytes();
	else if (!strcmp(what, "forge"))
		forge();
	else if (!strcmp(what, "steal"))
		return steal();
	else if (!strcmp(what, "kvm"))
		return kvm();
	else if (!strcmp(what, "work"))
		return work();
	else if (!strcmp(what, "leave-child"))
		return leave_child();
	else if (!strcmp(what, "get"))
		return get(arg);
	else if (!strcmp(what, "put") && argc == 4)
		return put(arg, argv[3]);
	else if (!strcmp(what, "forge-and-put") && argc == 4)
		return forge(), put(arg, argv[3]);
	else
		return 2;
	return 0;
}
