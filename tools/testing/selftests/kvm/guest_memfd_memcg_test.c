// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory that records which guest_memfd memory is private, and which is shared.
 *
 * What KVM promises, numbered as in guest_memfd_conversions_test:
 *
 * 12. The memory is charged to the memory cgroup of whoever converts, and its
 *     amount depends on the number of distinct ranges, not on the size of the file.
 *     Equal neighbours merge.
 * 16. No sequence of conversions, however fragmented, can hurt the host: a record
 *     of any size can be built, merged and torn down.
 *
 * A child process in a cgroup of its own, the worker, owns the VM and does as it
 * is told.  The test case stays out of the cgroup and looks at what is charged.
 *
 * If the cgroup is out of memory and the worker can't be killed, then anything that
 * needs memory, other than a conversion, may never return.  Hence the worker does
 * nothing but convert and reply.
 */
#include <limits.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/membarrier.h>
#include <linux/sizes.h>

#include "cgroup_util.h"
#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "test_util.h"

/* The largest records take a while on an emulated machine. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

/*
 * How many pages to convert, each one at a distance of a few others from the next,
 * i.e. there are twice as many ranges.  Powers of two, see nth_page().
 */
#define NR_PAGES		SZ_64K
#define NR_PAGES_MILLION	SZ_512K
#define STRIDE			64

/*
 * What a range costs: an object of 40 bytes, and a pointer to who is charged.  It
 * takes no other memory.
 */
#define BYTES_PER_RANGE		48

/* How long to wait for memory to be freed. */
#define MAX_GRACE_PERIODS	10000

/* How often to try again without memory. */
#define NR_RETRIES		10

/* How small a cgroup is, apart from what it takes to run a VM at all. */
#define LIMIT			((long)SZ_4M)

enum order {
	IN_ORDER,
	SHUFFLED,
	/* From both ends. */
	ALTERNATING,
};

enum op {
	CREATE,
	FRAGMENT,
	CONVERT,
	CLOSE,
	ENTER,
	EXIT,
	USE_MEMORY,
};

struct command {
	enum op op;
	/* In pages: of the file or range, and of those that are converted one by one. */
	u64 size;
	u64 first;
	u64 nr;
	u64 stride;
	enum order order;
	u64 attributes;
	char cgroup[64];
};

struct reply {
	int err;
	/* What KVM made of the canary, and where it failed. */
	u64 error_offset;
	u64 offset;
	/* The file, in the worker, or a negative number. */
	int fd;
	/* How many conversions have worked out, and, read by the test case, ... */
	u64 nr;
	/* ... what that has led to. */
	struct gmem_info info;
};

/* Owned by the test case, the worker isn't charged for it. */
struct channel {
	sem_t command_is_there;
	sem_t reply_is_there;
	struct command cmd;
	struct reply reply;
};

static size_t page_size;

/* What statistics can be off by, they are updated in batches on each CPU. */
static long slack;

/* Returns a permutation, i.e. each of [0, @nr) once. */
static u64 nth_page(u64 i, u64 nr, enum order order)
{
	switch (order) {
	case IN_ORDER:
		return i;
	case SHUFFLED:
		i = (i ^ kvm_random_seed) * 0x9e3779b1 & (nr - 1);
		i ^= i >> 7;
		return i * 0x85ebca6b & (nr - 1);
	case ALTERNATING:
		return i & 1 ? nr - 1 - i / 2 : i / 2;
	}
	TEST_FAIL("Unknown order %u", order);
}

/* Don't assert anything, that takes memory. */
static void convert(int fd, u64 offset, u64 size, u64 attributes, struct reply *reply)
{
	reply->offset = offset;
	reply->error_offset = ERROR_OFFSET_CANARY;
	reply->err = 0;
	if (__gmem_set_memory_attributes(fd, offset, size, attributes,
					 &reply->error_offset))
		reply->err = errno;
}

static void fragment(int fd, struct command *cmd, struct reply *reply)
{
	u64 page;

	for (; reply->nr < cmd->nr; reply->nr++) {
		page = cmd->first + nth_page(reply->nr, cmd->nr, cmd->order) * cmd->stride;
		convert(fd, page * page_size, page_size, cmd->attributes, reply);
		if (reply->err)
			break;
	}
}

/* More than the cgroup may have, and what a record has that is about to be freed. */
static void use_memory(void)
{
	size_t size = SZ_512M;
	char *mem = malloc(size);

	TEST_ASSERT(mem, "malloc() failed");
	memset(mem, 0x11, size);
	TEST_FAIL("There was enough memory for everything");
}

static void run_worker(struct channel *channel, bool killable)
{
	struct kvm_vm *vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	int fd = -1;

	vm_enable_gmem_attributes(vm);
	if (!killable)
		TEST_ASSERT(write_text("/proc/self/oom_score_adj", "-1000", 5) == 5,
			    "Failed to forbid the OOM killer to kill the worker");

	for (;;) {
		struct command *cmd = &channel->cmd;
		struct reply *reply = &channel->reply;

		while (sem_wait(&channel->command_is_there))
			;
		memset(reply, 0, sizeof(*reply));

		switch (cmd->op) {
		case CREATE:
			fd = vm_create_guest_memfd(vm, cmd->size * page_size, MMAP_SHARED);
			break;
		case FRAGMENT:
			fragment(fd, cmd, reply);
			break;
		case CONVERT:
			convert(fd, 0, cmd->size * page_size, cmd->attributes, reply);
			break;
		case CLOSE:
			kvm_free_fd(fd);
			break;
		case ENTER:
			TEST_ASSERT(!cg_enter_current(cmd->cgroup),
				    "Failed to enter %s", cmd->cgroup);
			break;
		case EXIT:
			_exit(KSFT_PASS);
		case USE_MEMORY:
			use_memory();
			break;
		}

		reply->fd = fd;
		sem_post(&channel->reply_is_there);
	}
}

FIXTURE(memcg) {
	char *cgroup;
	pid_t worker;
	struct channel *channel;
};

FIXTURE_VARIANT(memcg) {
	enum order order;
};

FIXTURE_VARIANT_ADD(memcg, in_order) {
	.order = IN_ORDER,
};

FIXTURE_VARIANT_ADD(memcg, shuffled) {
	.order = SHUFFLED,
};

FIXTURE_VARIANT_ADD(memcg, alternating) {
	.order = ALTERNATING,
};

#define memcg_data FIXTURE_DATA(memcg)
#define memcg_variant FIXTURE_VARIANT(memcg)

static char *new_cgroup(const char *name)
{
	char root[PATH_MAX], *cgroup;

	if (cg_find_unified_root(root, sizeof(root), NULL) ||
	    cg_read_strstr(root, "cgroup.controllers", "memory"))
		return NULL;

	TEST_ASSERT(!cg_write(root, "cgroup.subtree_control", "+memory"),
		    "Failed to enable the memory controller");
	cgroup = cg_name(root, name);
	TEST_ASSERT(cgroup && !cg_destroy(cgroup) && !cg_create(cgroup),
		    "Failed to create cgroup %s", name);
	return cgroup;
}

FIXTURE_SETUP(memcg)
{
	self->cgroup = new_cgroup("guest_memfd_memcg_test");
	if (!self->cgroup)
		SKIP(return, "Needs cgroup v2 with the memory controller");

	self->channel = kvm_mmap(sizeof(*self->channel), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(memcg)
{
	if (self->worker) {
		kill(self->worker, SIGKILL);
		waitpid(self->worker, NULL, 0);
	}
	TEST_ASSERT(!cg_destroy(self->cgroup), "Failed to remove the cgroup");
	free(self->cgroup);
}

static void __start_worker(memcg_data *self, bool killable)
{
	struct channel *channel = self->channel;
	pid_t test_case = getpid();

	sem_init(&channel->command_is_there, 1, 0);
	sem_init(&channel->reply_is_there, 1, 0);

	self->worker = fork();
	TEST_ASSERT(self->worker >= 0, "fork() failed");
	if (!self->worker) {
		/* Also if the test case was gone before. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != test_case)
			_exit(KSFT_FAIL);
		TEST_ASSERT(!cg_enter_current(self->cgroup),
			    "Failed to enter the cgroup");
		run_worker(channel, killable);
	}
}

static void start_worker(memcg_data *self)
{
	__start_worker(self, true);
}

static void send_command(memcg_data *self, struct command *cmd)
{
	self->channel->cmd = *cmd;
	sem_post(&self->channel->command_is_there);
}

static struct reply __do_command(memcg_data *self, struct command *cmd)
{
	struct reply reply;

	send_command(self, cmd);
	while (sem_trywait(&self->channel->reply_is_there)) {
		TEST_ASSERT(!waitpid(self->worker, NULL, WNOHANG), "The worker is gone");
		usleep(1000);
	}
	reply = self->channel->reply;
	if (reply.fd >= 0)
		__gmem_read_info(self->worker, reply.fd, &reply.info);
	if (cmd->op == FRAGMENT || cmd->op == CONVERT)
		TEST_ASSERT_EQ(reply.error_offset, reply.err == ENOMEM ?
			       reply.offset : ERROR_OFFSET_CANARY);
	return reply;
}

static struct reply do_command(memcg_data *self, struct command *cmd)
{
	struct reply reply = __do_command(self, cmd);

	TEST_ASSERT_EQ(reply.err, 0);
	return reply;
}

/* Returns the wait status of the worker, which is gone or about to be. */
static int reap_worker(memcg_data *self)
{
	int status;

	TEST_ASSERT_EQ(waitpid(self->worker, &status, 0), self->worker);
	self->worker = 0;
	return status;
}

static void create_file(memcg_data *self, u64 size)
{
	struct command cmd = { .op = CREATE, .size = size };

	do_command(self, &cmd);
}

static void close_file(memcg_data *self)
{
	struct command cmd = { .op = CLOSE };

	do_command(self, &cmd);
}

/* Have @nr pages, that are @stride pages apart, and no others, private. */
static void build_record(memcg_data *self, u64 nr, u64 stride, enum order order)
{
	struct command cmd = {
		.op = FRAGMENT,
		.nr = nr,
		.stride = STRIDE,
		.order = order,
		.attributes = ATTR_PRIVATE,
	};
	struct gmem_info info = do_command(self, &cmd).info;

	TEST_ASSERT_EQ(info.private, nr);
	TEST_ASSERT_EQ(info.ranges, 2 * nr);
	TEST_ASSERT_EQ(info.converted, nr);

	/* All of them, and none but them, are private: there's nothing to do. */
	TEST_ASSERT_EQ(do_command(self, &cmd).info.converted, nr);
}

static struct gmem_info convert_all(memcg_data *self, u64 nr, u64 attributes)
{
	struct command cmd = {
		.op = CONVERT,
		.size = nr,
		.attributes = attributes,
	};

	return do_command(self, &cmd).info;
}

/* In bytes. */
static long charged(const char *cgroup)
{
	long val = cg_read_key_long(cgroup, "memory.stat", "slab_unreclaimable ");

	TEST_ASSERT(val >= 0, "Failed to read memory.stat");
	return val;
}

/* Returns how much memory of that kind there is, no matter who is charged. */
static long used(void)
{
	char buf[BUF_SIZE], *line;

	TEST_ASSERT(read_text("/proc/meminfo", buf, sizeof(buf)) > 0,
		    "Failed to read meminfo");
	line = strstr(buf, "SUnreclaim:");
	TEST_ASSERT(line, "There's no SUnreclaim in meminfo");
	return atol(line + strlen("SUnreclaim:")) * 1024;
}

/*
 * Wait for no more to be charged than @base.  Nodes are freed, and others are freed
 * along with them, after an RCU grace period.
 */
static void wait_for_memory(const char *cgroup, long base)
{
	int nr_grace_periods = 0;

	while (charged(cgroup) > base + slack) {
		TEST_ASSERT(nr_grace_periods++ < MAX_GRACE_PERIODS,
			    "%ld bytes too many are still charged",
			    charged(cgroup) - base);
		TEST_ASSERT(!syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0),
			    "membarrier() failed");
	}
}

static void __check_charge(long charge, u64 nr, int line)
{
	TEST_ASSERT(labs(charge - (long)(nr * BYTES_PER_RANGE)) < slack,
		    "Line %d: %ld bytes are charged for %lu pages", line, charge, nr);
}

#define check_charge(charge, nr) __check_charge(charge, nr, __LINE__)

/* The memory is charged, and to whoever makes it necessary, and to no one else. */
TEST_F(memcg, charged)
{
	struct command enter = { .op = ENTER };
	char *other = new_cgroup("guest_memfd_memcg_test_2");
	long base, charge, base_used;

	start_worker(self);
	create_file(self, NR_PAGES * STRIDE);
	base = charged(self->cgroup);
	base_used = used();
	build_record(self, NR_PAGES, STRIDE, variant->order);
	charge = charged(self->cgroup) - base;
	check_charge(charge, NR_PAGES);

	/* Not to forget that accounting takes some memory, too. */
	TEST_ASSERT(used() - base_used < charge + charge / 4 + 2 * slack,
		    "%ld bytes are charged, but %ld more are used", charge,
		    used() - base_used);

	close_file(self);
	wait_for_memory(self->cgroup, base);

	/* A cgroup pays for what is done there, no matter where the VM is from. */
	snprintf(enter.cgroup, sizeof(enter.cgroup), "%s", other);
	create_file(self, NR_PAGES * STRIDE);
	base = charged(self->cgroup);
	do_command(self, &enter);
	build_record(self, NR_PAGES, STRIDE, variant->order);
	TEST_ASSERT(charged(self->cgroup) < base + slack,
		    "%ld bytes are charged to the wrong cgroup",
		    charged(self->cgroup) - base);
	check_charge(charged(other), NR_PAGES);

	close_file(self);
	wait_for_memory(other, 0);
	snprintf(enter.cgroup, sizeof(enter.cgroup), "%s", self->cgroup);
	do_command(self, &enter);
	TEST_ASSERT(!cg_destroy(other), "Failed to remove the other cgroup");
	free(other);
}

/* What counts is the number of ranges. */
TEST_F(memcg, size_of_file)
{
	const u64 factor = 1024;
	long base, charge[2];
	struct gmem_info info;
	int i;

	start_worker(self);

	for (i = 0; i < ARRAY_SIZE(charge); i++) {
		const u64 stride = STRIDE * (i ? factor : 1);

		create_file(self, NR_PAGES * stride);
		base = charged(self->cgroup);
		build_record(self, NR_PAGES, stride, variant->order);
		charge[i] = charged(self->cgroup) - base;
		check_charge(charge[i], NR_PAGES);
		close_file(self);
		wait_for_memory(self->cgroup, base);
	}
	TEST_ASSERT(labs(charge[0] - charge[1]) < slack,
		    "The same ranges cost %ld bytes in a file that costs %ld bytes if it is larger",
		    charge[0], charge[1]);

	/* A single one is for free, so to speak. */
	create_file(self, NR_PAGES * STRIDE * factor);
	base = charged(self->cgroup);
	info = convert_all(self, NR_PAGES * STRIDE * factor, ATTR_PRIVATE);
	TEST_ASSERT_EQ(info.private, NR_PAGES * STRIDE * factor);
	TEST_ASSERT(charged(self->cgroup) < base + slack,
		    "%ld bytes are charged for one range", charged(self->cgroup) - base);
}

/*
 * Many pages are private, and all of that goes away in a variety of ways.  There
 * are as many ways to go back to what once was as there are to get there.
 */
static void test_merge(memcg_data *self, enum order order)
{
	const u64 nr_pages = NR_PAGES * STRIDE;
	struct command undo = {
		.op = FRAGMENT,
		.nr = NR_PAGES,
		.stride = STRIDE,
	};
	struct gmem_info info;
	long base;

	create_file(self, nr_pages);
	base = charged(self->cgroup);

	/* At once, to either state. */
	build_record(self, NR_PAGES, STRIDE, order);
	check_charge(charged(self->cgroup) - base, NR_PAGES);
	info = convert_all(self, nr_pages, ATTR_SHARED);
	TEST_ASSERT_EQ(info.private, 0);
	TEST_ASSERT_EQ(info.ranges, 1);
	wait_for_memory(self->cgroup, base);
	close_file(self);

	create_file(self, nr_pages);
	build_record(self, NR_PAGES, STRIDE, order);
	info = convert_all(self, nr_pages, ATTR_PRIVATE);
	TEST_ASSERT_EQ(info.private, nr_pages);
	TEST_ASSERT_EQ(info.ranges, 1);
	wait_for_memory(self->cgroup, base);
	close_file(self);

	/* One by one. */
	for (undo.order = IN_ORDER; undo.order <= ALTERNATING; undo.order++) {
		create_file(self, nr_pages);
		build_record(self, NR_PAGES, STRIDE, order);
		info = do_command(self, &undo).info;
		TEST_ASSERT_EQ(info.private, 0);
		TEST_ASSERT_EQ(info.ranges, 1);
		TEST_ASSERT_EQ(info.converted, 2 * NR_PAGES);
		wait_for_memory(self->cgroup, base);
		close_file(self);
	}
}

/* Pages that are far apart take memory, which returns. */
TEST_F(memcg, merge)
{
	start_worker(self);
	test_merge(self, variant->order);
}

/* Pages next to each other take one range, in whatever order they are converted. */
TEST_F(memcg, merge_neighbors)
{
	struct command fragment = {
		.op = FRAGMENT,
		.nr = NR_PAGES,
		.stride = 1,
		.order = variant->order,
		.attributes = ATTR_PRIVATE,
	};
	struct gmem_info info;
	long base;

	start_worker(self);
	create_file(self, NR_PAGES);
	base = charged(self->cgroup);

	info = do_command(self, &fragment).info;
	TEST_ASSERT_EQ(info.private, NR_PAGES);
	TEST_ASSERT_EQ(info.ranges, 1);
	TEST_ASSERT_EQ(info.converted, NR_PAGES);
	TEST_ASSERT(charged(self->cgroup) < base + slack,
		    "%ld bytes are charged for neighbors",
		    charged(self->cgroup) - base);
	close_file(self);
}

/* Returns the number of bytes that can be charged. */
static long set_limit(memcg_data *self)
{
	long max = cg_read_long(self->cgroup, "memory.current") + LIMIT;

	TEST_ASSERT(!cg_write_numeric(self->cgroup, "memory.max", max),
		    "Failed to limit memory");
	return max;
}

/* The number of pages is such that there can't be enough memory. */
static void run_into_limit(memcg_data *self, const memcg_variant *variant,
			   struct command *cmd)
{
	*cmd = (struct command) {
		.op = FRAGMENT,
		.nr = SZ_1M,
		.stride = STRIDE,
		.order = variant->order,
		.attributes = ATTR_PRIVATE,
	};
	create_file(self, cmd->nr * cmd->stride);
}

/* What is used, by anyone, doesn't grow beyond what the cgroup is limited to. */
static void __check_growth(memcg_data *self, long base_used, long max, int line)
{
	long growth = used() - base_used;
	long peak = cg_read_long(self->cgroup, "memory.peak");

	TEST_ASSERT(growth < LIMIT + LIMIT / 4 + 2 * slack,
		    "Line %d: %ld bytes more are used, beyond a limit of %ld",
		    line, growth, LIMIT);
	TEST_ASSERT(peak <= max,
		    "Line %d: the limit was exceeded by %ld bytes", line, peak - max);
}

#define check_growth(self, base_used, max)				\
	__check_growth(self, base_used, max, __LINE__)

/* There's no memory, and no one to kill. */
TEST_F(memcg, enomem)
{
	struct command cmd;
	struct reply reply;
	struct gmem_info info;
	long base, base_used, max;
	u64 i, nr;

	__start_worker(self, false);
	run_into_limit(self, variant, &cmd);
	base = charged(self->cgroup);
	base_used = used();
	max = set_limit(self);

	reply = __do_command(self, &cmd);
	TEST_ASSERT_EQ(reply.err, ENOMEM);
	TEST_ASSERT(reply.nr > LIMIT / 2 / BYTES_PER_RANGE &&
		    reply.nr <= (LIMIT + slack) / BYTES_PER_RANGE,
		    "Memory was enough for %lu pages", reply.nr);
	nr = reply.nr;
	TEST_ASSERT_EQ(reply.info.private, nr);
	/* The first page isn't necessarily one of them. */
	TEST_ASSERT_EQ(reply.info.ranges & ~1ull, 2 * nr);
	TEST_ASSERT_EQ(reply.info.converted, nr);
	TEST_ASSERT_EQ(reply.info.refused, 1);
	check_growth(self, base_used, max);

	/*
	 * There may be memory for a few pages more, as what is charged in advance on
	 * each CPU is given back.  All of that stays within the limit.
	 */
	for (i = 1; i <= NR_RETRIES; i++) {
		cmd.first = i * STRIDE / (NR_RETRIES + 1);
		reply = __do_command(self, &cmd);
		TEST_ASSERT_EQ(reply.err, ENOMEM);
		nr += reply.nr;
		TEST_ASSERT_EQ(reply.info.private, nr);
		TEST_ASSERT_EQ(reply.info.refused, i + 1);
		check_growth(self, base_used, max);
	}

	/* What helps is having fewer ranges, which is still possible. */
	info = convert_all(self, cmd.nr * cmd.stride, ATTR_SHARED);
	TEST_ASSERT_EQ(info.ranges, 1);
	wait_for_memory(self->cgroup, base);
	cmd.nr = 64;
	TEST_ASSERT_EQ(do_command(self, &cmd).info.private, cmd.nr);
}

static void expect_oom_kill(memcg_data *self)
{
	int status = reap_worker(self);

	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "Unexpected wait status 0x%x", status);
	TEST_ASSERT(cg_read_key_long(self->cgroup, "memory.events", "oom_kill ") > 0,
		    "The OOM killer hasn't killed anyone");
}

/* There's no memory, whoever converts is killed. */
TEST_F(memcg, oom_kill)
{
	struct command cmd;
	long base_used, max;

	start_worker(self);
	run_into_limit(self, variant, &cmd);
	base_used = used();
	max = set_limit(self);

	send_command(self, &cmd);
	expect_oom_kill(self);
	check_growth(self, base_used, max);
	wait_for_memory(self->cgroup, 0);
}

enum teardown {
	BY_CLOSE,
	BY_CONVERSION,
	BY_EXIT,
	BY_OOM_KILL,
};

static void test_teardown(memcg_data *self, enum order order, enum teardown how,
			  u64 nr)
{
	struct command command_exit = { .op = EXIT };
	struct command use_memory = { .op = USE_MEMORY };
	long base;

	start_worker(self);
	create_file(self, nr * STRIDE);
	base = charged(self->cgroup);
	build_record(self, nr, STRIDE, order);

	switch (how) {
	case BY_CLOSE:
		close_file(self);
		wait_for_memory(self->cgroup, base);
		break;
	case BY_CONVERSION:
		TEST_ASSERT_EQ(convert_all(self, nr * STRIDE, ATTR_SHARED).ranges, 1);
		wait_for_memory(self->cgroup, base);
		break;
	case BY_EXIT:
		break;
	case BY_OOM_KILL:
		set_limit(self);
		send_command(self, &use_memory);
		expect_oom_kill(self);
		break;
	}

	if (how != BY_OOM_KILL) {
		send_command(self, &command_exit);
		TEST_ASSERT_EQ(reap_worker(self), 0);
	}
	wait_for_memory(self->cgroup, 0);
	TEST_ASSERT(!cg_write(self->cgroup, "memory.max", "max"),
		    "Failed to lift the limit");
}

/* Trees of every height, most of them neither as full nor as empty as can be. */
static void test_teardowns(memcg_data *self, const memcg_variant *variant,
			   enum teardown how)
{
	u64 nr;

	for (nr = 1; nr <= NR_PAGES; nr *= 4)
		test_teardown(self, variant->order, how, nr);
}

TEST_F(memcg, teardown_by_close)
{
	test_teardowns(self, variant, BY_CLOSE);
}

TEST_F(memcg, teardown_by_conversion)
{
	test_teardowns(self, variant, BY_CONVERSION);
}

TEST_F(memcg, teardown_by_exit)
{
	test_teardowns(self, variant, BY_EXIT);
}

TEST_F(memcg, teardown_by_oom_kill)
{
	test_teardowns(self, variant, BY_OOM_KILL);
}

/* Of a million ranges.  Each order, and each way out, once is enough. */
TEST_F(memcg, million)
{
	switch (variant->order) {
	case IN_ORDER:
		test_teardown(self, IN_ORDER, BY_CLOSE, NR_PAGES_MILLION);
		break;
	case SHUFFLED:
		test_teardown(self, SHUFFLED, BY_CONVERSION, NR_PAGES_MILLION);
		test_teardown(self, SHUFFLED, BY_OOM_KILL, NR_PAGES_MILLION);
		break;
	case ALTERNATING:
		test_teardown(self, ALTERNATING, BY_EXIT, NR_PAGES_MILLION);
		break;
	}
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	slack = 256 * page_size;
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
