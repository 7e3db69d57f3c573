// SPDX-License-Identifier: GPL-2.0
/*
 * The only process of the guest that samples/kvm/guest_memfd_linux.c boots.
 *
 * It makes up a secret and reads a file from the disk, and says in the kernel's
 * log, which the host sees on the console, which of the two the host can also
 * see in memory, and which not.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

static char secret[33];		/* letters, so that it can be told */
static char text[64];		/* what the file says */

static int tell(FILE *log)
{
	size_t i;
	int fd;

	if (getrandom(secret, sizeof(secret) - 1, 0) != sizeof(secret) - 1)
		return fprintf(log, "<2>init: no randomness: %m\n");
	for (i = 0; i < sizeof(secret) - 1; i++)
		secret[i] = 'a' + (secret[i] & 15);

	if (mount("/dev/vda", "/disk", "ext2", MS_RDONLY, NULL))
		return fprintf(log, "<2>init: cannot mount the disk: %m\n");
	fd = open("/disk/file", O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return fprintf(log, "<2>init: cannot read the file: %m\n");
	text[strcspn(text, "\n")] = '\0';

	fprintf(log, "<2>init: the host can see: %s\n", text);
	fprintf(log, "<2>init: the host cannot see: %s\n", secret);
	return 0;
}

int main(void)
{
	FILE *log;

	mkdir("/dev", 0755);
	mkdir("/disk", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	log = fopen("/dev/kmsg", "w");
	if (log) {
		setvbuf(log, NULL, _IOLBF, 0);	/* one write is one record */
		tell(log);
	}
	reboot(RB_POWER_OFF);
}
