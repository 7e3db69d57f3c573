/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fault injection that is exhaustive instead of random: have the first, second,
 * third, ... allocation that a system call makes fail, until there is none left
 * to fail.  See Documentation/fault-injection/fault-injection.rst.
 */
#ifndef SELFTEST_KVM_FAIL_NTH_H
#define SELFTEST_KVM_FAIL_NTH_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvm_syscalls.h"
#include "test_util.h"

#define FAIL_NTH_DEBUGFS	"/sys/kernel/debug/"
#define FAIL_NTH_NEEDS		"Needs CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC and debugfs"

/* There's no end of failures if it takes more than this. */
#define FAIL_NTH_MAX		1000

/* Not all kinds of failures exist in all kernels. */
static inline void fail_nth_set(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0)
		return;

	TEST_ASSERT_EQ(write(fd, val, strlen(val)), strlen(val));
	kvm_close(fd);
}

/*
 * Returns a file descriptor for the calling thread, or -1 if allocations can't
 * be made to fail.
 */
static inline int fail_nth_open(void)
{
	if (access(FAIL_NTH_DEBUGFS "failslab", F_OK) ||
	    access(FAIL_NTH_DEBUGFS "fail_page_alloc", F_OK))
		return -1;

	/* Any allocation may fail, and there's no need to talk about it. */
	fail_nth_set(FAIL_NTH_DEBUGFS "failslab/ignore-gfp-wait", "N");
	fail_nth_set(FAIL_NTH_DEBUGFS "failslab/verbose", "0");
	fail_nth_set(FAIL_NTH_DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N");
	fail_nth_set(FAIL_NTH_DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	fail_nth_set(FAIL_NTH_DEBUGFS "fail_page_alloc/min-order", "0");
	fail_nth_set(FAIL_NTH_DEBUGFS "fail_page_alloc/verbose", "0");
	fail_nth_set(FAIL_NTH_DEBUGFS "fail_usercopy/verbose", "0");

	return open("/proc/thread-self/fail-nth", O_RDWR);
}

static inline void fail_nth_start(int fd, int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%d", nth);

	TEST_ASSERT_EQ(pwrite(fd, buf, len, 0), len);
}

/* Returns whether or not there was a failure since fail_nth_start(). */
static inline bool fail_nth_stop(int fd)
{
	char buf[16] = {};

	/*
	 * A failure that wasn't due yet can strike here, too, as copying to and
	 * from user space is subject to it in some kernels.
	 */
	if (pread(fd, buf, sizeof(buf) - 1, 0) < 0) {
		TEST_ASSERT_EQ(errno, EFAULT);
		buf[0] = '1';
	}
	while (pwrite(fd, "0", 1, 0) != 1)
		TEST_ASSERT_EQ(errno, EFAULT);

	return !atoi(buf);
}

#endif /* SELFTEST_KVM_FAIL_NTH_H */
