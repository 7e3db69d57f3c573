// SPDX-License-Identifier: GPL-2.0-only
/*
 * Signals that arrive while guest_memfd memory is being converted.
 *
 * What KVM promises, numbered as in guest_memfd_conversions_test:
 *
 *  1. All or nothing.  A call that fails has changed nothing.
 * 11. A fatal signal ends a long conversion before it commits, with nothing
 *     changed, and how long that takes does not depend on the size of the range.
 *     No other signal has any effect on a conversion.
 *
 * Only the process that created a VM can convert, and it's the one that dies.
 * The test case, the watcher, is another process that was handed the file: it sees
 * how far the conversion has come, sends the signal, and looks at what is left.
 *
 * Both are bound to one CPU, on which the watcher takes precedence, i.e. nothing
 * happens between its seeing something and its reaction to that.  Nevertheless,
 * the watcher can be too late, e.g. if the machine is an emulated one whose timers
 * are late, and starts all over if there was nothing left to be interrupted.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* Populating memory takes its time on an emulated machine. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

#define TEST_SLOT		10
#define TEST_GPA		((gpa_t)SZ_4G)

/*
 * A conversion that got a fatal signal may finish what it is at, but must not do
 * more than this.
 */
#define BATCH_SIZE		((u64)SZ_64M)
#define NR_BATCHES		4
#define SIZE			(NR_BATCHES * BATCH_SIZE)
#define NR_PAGES		(SIZE / page_size)

/* Enough for the watcher to have its say while KVM looks at them. */
#define NR_RUNS			16384

/* How often to try, if the watcher or the owner is too late. */
#define NR_ATTEMPTS		20

static size_t page_size;

/*
 * What the watcher asks the owner for: @nr conversions, @stride bytes apart, and
 * then to map all of the memory in the guest.
 */
struct command {
	u64 offset;
	u64 size;
	u64 nr;
	u64 stride;
	u64 attributes;
	bool map;
};

/* What the owner says: errno, and the number of signals that it has handled. */
struct reply {
	int err;
	int nr_signals;
};

struct owner {
	pid_t pid;
	int sock;
	int fd;
	u64 size;
	u8 *mem;
	/* Of the VM, or on arm64, which has no such statistics, its page tables. */
	struct kvm_binary_stats stats;
};

static int nr_signals;

static void count_signal(int signum)
{
	WRITE_ONCE(nr_signals, READ_ONCE(nr_signals) + 1);
}

static void set_policy(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	TEST_ASSERT(!sched_setscheduler(0, policy, &param),
		    "sched_setscheduler() failed, errno = %d", errno);
}

/*
 * What tells how many pages are mapped in the guest, and keeps the VM.
 */
#ifdef __x86_64__
static int open_stats(struct kvm_vm *vm)
{
	return vm_get_stats_fd(vm);
}

static bool has_stats(struct owner *owner)
{
	return true;
}

static u64 nr_guest_pages(struct owner *owner)
{
	return __get_stat(&owner->stats, pages_4k);
}
#elif defined(__aarch64__)
/* Nothing, if there is no such file in debugfs. */
static int open_stats(struct kvm_vm *vm)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/stage2_page_tables",
		 getpid(), vm->fd);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		fd = open("/dev/null", O_RDONLY);
	TEST_ASSERT(fd >= 0, "Failed to open /dev/null");
	return fd;
}

static ssize_t read_stats(struct owner *owner, char *buf, size_t size)
{
	ssize_t r = pread(owner->stats.fd, buf, size - 1, 0);

	TEST_ASSERT(r >= 0 && r < size - 1, "Reading page tables returned %zd", r);
	buf[r] = 0;
	return r;
}

static bool has_stats(struct owner *owner)
{
	char buf[SZ_16K];

	return read_stats(owner, buf, sizeof(buf));
}

/* Add up the lines about the test's memory that say that it can be read. */
static u64 nr_guest_pages(struct owner *owner)
{
	u64 start, end, nr = 0;
	char buf[SZ_16K], *line;

	read_stats(owner, buf, sizeof(buf));
	for (line = strtok(buf, "\n"); line; line = strtok(NULL, "\n")) {
		if (sscanf(line, "0x%lx-0x%lx", &start, &end) == 2 &&
		    start >= TEST_GPA && strstr(line, " R "))
			nr += (end - start) / page_size;
	}
	return nr;
}
#endif

static void guest_code(void)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++)
		READ_ONCE(*(u64 *)(TEST_GPA + i * page_size));
	GUEST_DONE();
}

static void map_in_guest(struct kvm_vcpu *vcpu)
{
	sync_global_to_guest(vcpu->vm, page_size);
	virt_map(vcpu->vm, TEST_GPA, TEST_GPA, NR_PAGES);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
}

static void obey(int fd, struct kvm_vcpu *vcpu, struct command *cmd,
		 struct reply *reply)
{
	u64 i, error_offset;

	for (i = 0; i < cmd->nr && !reply->err; i++)
		reply->err = __try_convert(fd, cmd->offset + i * cmd->stride, cmd->size,
					   cmd->attributes, &error_offset);
	if (cmd->map)
		map_in_guest(vcpu);

	reply->nr_signals = READ_ONCE(nr_signals);
}

/* The process that can convert, and does so until it is killed. */
static void run_owner(int sock, u64 size)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};
	struct kvm_vm *vm = __vm_create(shape, 1, NR_PAGES);
	struct kvm_vcpu *vcpu;
	struct command cmd;
	int fd;

	set_policy(SCHED_OTHER, 0);
	signal(SIGUSR1, count_signal);

	vm_enable_gmem_attributes(vm);
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(vm);
	fd = vm_create_guest_memfd(vm, size, MMAP_SHARED);
	/* What doesn't fit is about the file alone. */
	if (size <= SIZE)
		vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
					   TEST_GPA, size, NULL, fd, 0);

	send_fd(sock, fd);
	send_fd(sock, open_stats(vm));

	while (read(sock, &cmd, sizeof(cmd)) == sizeof(cmd)) {
		struct reply reply = {};

		obey(fd, vcpu, &cmd, &reply);
		TEST_ASSERT_EQ(write(sock, &reply, sizeof(reply)), sizeof(reply));
	}
	_exit(KSFT_PASS);
}

/* The owner has been reaped already if @pid isn't set. */
static void stop_owner(struct owner *owner)
{
	if (owner->pid) {
		kill(owner->pid, SIGKILL);
		TEST_ASSERT_EQ(waitpid(owner->pid, NULL, 0), owner->pid);
	}
	free(owner->stats.desc);
	kvm_close(owner->stats.fd);
	kvm_munmap(owner->mem, owner->size);
	kvm_close(owner->fd);
	kvm_close(owner->sock);
}

/* Starts all over if there is an owner. */
static void start_owner(struct owner *owner, u64 size)
{
	int socks[2];

	if (owner->fd)
		stop_owner(owner);
	memset(owner, 0, sizeof(*owner));
	owner->size = size;

	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks),
		    "socketpair() failed");
	owner->pid = fork();
	TEST_ASSERT(owner->pid >= 0, "fork() failed");
	if (!owner->pid) {
		kvm_close(socks[0]);
		run_owner(socks[1], size);
	}

	kvm_close(socks[1]);
	owner->sock = socks[0];
	owner->fd = receive_fd(owner->sock);
	owner->mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, owner->fd);
	owner->stats.fd = receive_fd(owner->sock);
}

static void send_command(struct owner *owner, struct command *cmd)
{
	TEST_ASSERT_EQ(write(owner->sock, cmd, sizeof(*cmd)), sizeof(*cmd));
}

/* Returns the number of signals that the owner has handled so far. */
static int receive_reply(struct owner *owner)
{
	struct reply reply;

	TEST_ASSERT_EQ(read(owner->sock, &reply, sizeof(reply)), sizeof(reply));
	TEST_ASSERT_EQ(reply.err, 0);

	return reply.nr_signals;
}

static void do_command(struct owner *owner, struct command *cmd)
{
	send_command(owner, cmd);
	TEST_ASSERT_EQ(receive_reply(owner), 0);
}

static void send_convert(struct owner *owner, u64 attributes)
{
	struct command cmd = {
		.size = owner->size,
		.nr = 1,
		.attributes = attributes,
	};

	send_command(owner, &cmd);
}

/* Be nice, nothing tells when a mapping goes away. */
static void wait_a_bit(void)
{
	usleep(100);
}

FIXTURE(signals) {
	struct owner owner;
};

FIXTURE_VARIANT(signals) {
	int signal;
	bool fatal;
};

FIXTURE_VARIANT_ADD(signals, kill) {
	.signal = SIGKILL,
	.fatal = true,
};

FIXTURE_VARIANT_ADD(signals, handled) {
	.signal = SIGUSR1,
	.fatal = false,
};

#define signals_data FIXTURE_DATA(signals)
#define signals_variant FIXTURE_VARIANT(signals)

FIXTURE_SETUP(signals)
{
	pin_self_to_any_cpu();
	set_policy(SCHED_FIFO, 1);
}

FIXTURE_TEARDOWN(signals)
{
	if (self->owner.fd)
		stop_owner(&self->owner);
}

static void send_signal(signals_data *self, const signals_variant *variant)
{
	TEST_ASSERT(!kill(self->owner.pid, variant->signal), "kill() failed");
}

/*
 * See to it that the signal has the effect that it ought to have.  Returns false if
 * the conversion was found to be over when it was sent, which is known only of an
 * owner that lives on.
 */
static bool wait_for_effect(signals_data *self, const signals_variant *variant)
{
	struct owner *owner = &self->owner;
	int status;

	if (!variant->fatal)
		return receive_reply(owner) == 1;

	TEST_ASSERT_EQ(waitpid(owner->pid, &status, 0), owner->pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == variant->signal,
		    "Unexpected wait status 0x%x", status);
	owner->pid = 0;
	return true;
}

/*
 * After one conversion was asked for and the signal sent in time, either all pages
 * are in the state that was asked for, or nothing has changed.
 */
static void check_state(signals_data *self, const signals_variant *variant,
			struct gmem_info *before, u64 attributes)
{
	u64 nr_pages = self->owner.size / page_size;
	struct kvm_memory_attributes2 attr = {
		.size = page_size,
		.attributes = attributes,
	};
	struct gmem_info info;

	gmem_read_info(self->owner.fd, &info);
	TEST_ASSERT_EQ(info.populated, before->populated);

	if (variant->fatal) {
		TEST_ASSERT_EQ(info.private, before->private);
		TEST_ASSERT_EQ(info.ranges, before->ranges);
		TEST_ASSERT_EQ(info.converted, before->converted);
		TEST_ASSERT_EQ(info.refused, before->refused + 1);
	} else {
		TEST_ASSERT_EQ(info.private, attributes ? nr_pages : 0);
		TEST_ASSERT_EQ(info.ranges, 1);
		TEST_ASSERT_EQ(info.converted, before->converted + 1);
		TEST_ASSERT_EQ(info.refused, before->refused);
	}

	/* No one inherits the right to convert. */
	TEST_ASSERT(__gmem_ioctl(self->owner.fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) &&
		    errno == EIO, "The watcher can convert, errno = %d", errno);
}

static void fill(struct owner *owner)
{
	u64 i;

	for (i = 0; i < owner->size / page_size; i++)
		WRITE_ONCE(*(u64 *)(owner->mem + i * page_size), i + 1);
}

static void check_contents(struct owner *owner)
{
	u64 i, val;

	for (i = 0; i < owner->size / page_size; i++) {
		val = READ_ONCE(*(u64 *)(owner->mem + i * page_size));
		TEST_ASSERT(val == i + 1, "Unexpected 0x%lx in page %lu", val, i);
	}
}

static u64 nr_batches_begun(struct owner *owner)
{
	u64 i, nr = 0;

	for (i = 0; i < NR_BATCHES; i++)
		nr += !host_is_mapped(owner->mem + i * BATCH_SIZE);
	return nr;
}

/* All of a large range is mapped in the host. */
TEST_F(signals, host_mapped)
{
	struct owner *owner = &self->owner;
	struct gmem_info before;
	bool in_time;
	u64 nr_begun;
	int i;

	for (i = 0; i < NR_ATTEMPTS; i++) {
		start_owner(owner, SIZE);
		fill(owner);
		TEST_ASSERT_EQ(nr_batches_begun(owner), 0);
		gmem_read_info(owner->fd, &before);

		send_convert(owner, ATTR_PRIVATE);
		while (!(nr_begun = nr_batches_begun(owner)))
			wait_a_bit();
		send_signal(self, variant);
		in_time = wait_for_effect(self, variant);

		/* If the batch was complete, then one more may have been begun. */
		if (nr_begun + 1 < NR_BATCHES)
			break;
	}

	TEST_ASSERT(i < NR_ATTEMPTS,
		    "The conversion was seen too late, %d times in a row", i);
	TEST_ASSERT(in_time, "The signal was lost");
	if (variant->fatal) {
		u64 nr = nr_batches_begun(owner);

		TEST_ASSERT(nr <= nr_begun + 1,
			    "There were %lu batches before the signal, and %lu in the end",
			    nr_begun, nr);
	}
	check_state(self, variant, &before, ATTR_PRIVATE);
	if (variant->fatal)
		check_contents(owner);
}

/* Each page that is to be converted is in a range of its own, next to private ones. */
TEST_F(signals, fragmented)
{
	struct owner *owner = &self->owner;
	struct command fragment = {
		.offset = 64 * page_size,
		.size = page_size,
		.nr = NR_RUNS,
		.stride = 64 * page_size,
		.attributes = ATTR_PRIVATE,
	};
	const u64 size = (NR_RUNS + 2) * fragment.stride;
	struct gmem_info before, after;
	bool in_time;
	u64 run;
	int i;

	for (i = 0; i < NR_ATTEMPTS; i++) {
		start_owner(owner, size);
		do_command(owner, &fragment);

		for (run = 1; run <= NR_RUNS; run++)
			WRITE_ONCE(*(u64 *)(owner->mem + run * fragment.stride + page_size), run);

		/* Seen first, and thus tells when the conversion has begun. */
		WRITE_ONCE(*(u64 *)owner->mem, 0x1234);
		gmem_read_info(owner->fd, &before);
		TEST_ASSERT_EQ(before.private, NR_RUNS);
		TEST_ASSERT_EQ(before.ranges, 2 * NR_RUNS + 1);

		send_convert(owner, ATTR_PRIVATE);
		while (host_is_mapped(owner->mem))
			wait_a_bit();
		send_signal(self, variant);
		in_time = wait_for_effect(self, variant);

		gmem_read_info(owner->fd, &after);
		if (in_time && (!variant->fatal || after.private == before.private))
			break;
	}

	TEST_ASSERT(in_time, "The signal was too late, %d times in a row", i);
	check_state(self, variant, &before, ATTR_PRIVATE);
	if (variant->fatal)
		TEST_ASSERT_EQ(READ_ONCE(*(u64 *)owner->mem), 0x1234);
}

/* Returns false if nothing tells what is mapped. */
static bool test_guest_mapped(signals_data *self, const signals_variant *variant,
			      u64 attributes)
{
	struct command map = {
		.size = SIZE,
		.nr = 1,
		.attributes = attributes ^ ATTR_PRIVATE,
		.map = true,
	};
	const u64 batch = BATCH_SIZE / page_size;
	struct owner *owner = &self->owner;
	struct gmem_info before, after;
	u64 nr, nr_left, nr_kept = 0;
	bool in_time;
	int i;

	for (i = 0; i < NR_ATTEMPTS; i++) {
		start_owner(owner, SIZE);
		if (!has_stats(owner))
			return false;

		fill(owner);
		do_command(owner, &map);
		nr = nr_guest_pages(owner);
		TEST_ASSERT(nr >= NR_PAGES,
			    "Only %lu pages are mapped in the guest", nr);
		gmem_read_info(owner->fd, &before);

		send_convert(owner, attributes);
		while ((nr_left = nr_guest_pages(owner)) == nr)
			wait_a_bit();
		send_signal(self, variant);

		/*
		 * The guest dies with the owner, and takes its mappings along.  Have a
		 * look in between: this waits for the conversion to end, and as the
		 * watcher takes precedence, the owner waits for it to be done.
		 */
		if (variant->fatal) {
			gmem_read_info(owner->fd, &after);
			nr_kept = nr_guest_pages(owner);
		}
		in_time = wait_for_effect(self, variant);

		if (nr_left >= 2 * batch)
			break;
	}

	TEST_ASSERT(i < NR_ATTEMPTS,
		    "The conversion was seen too late, %d times in a row", i);
	TEST_ASSERT(in_time, "The signal was lost");
	if (variant->fatal)
		TEST_ASSERT(nr_left - nr_kept <= batch,
			    "%lu pages were mapped at the time of the signal, and %lu in the end",
			    nr_left, nr_kept);
	check_state(self, variant, &before, attributes);
	if (variant->fatal == !!attributes)
		check_contents(owner);
	return true;
}

/* All of a large range is mapped in the guest. */
TEST_F(signals, guest_mapped_to_private)
{
	if (!test_guest_mapped(self, variant, ATTR_PRIVATE))
		SKIP(return, "Needs CONFIG_PTDUMP_STAGE2_DEBUGFS");
}

/* All of a large range is mapped in the guest. */
TEST_F(signals, guest_mapped_to_shared)
{
	if (!test_guest_mapped(self, variant, ATTR_SHARED))
		SKIP(return, "Needs CONFIG_PTDUMP_STAGE2_DEBUGFS");
}

/* Returns a process that allocates all of the file, at leisure. */
static pid_t start_allocating(struct owner *owner)
{
	struct gmem_info info;
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		set_policy(SCHED_IDLE, 0);
		kvm_fallocate(owner->fd, FALLOC_FL_KEEP_SIZE, 0, owner->size);
		_exit(KSFT_PASS);
	}

	do {
		wait_a_bit();
		gmem_read_info(owner->fd, &info);
	} while (!info.populated);
	return pid;
}

static bool is_running(pid_t pid)
{
	siginfo_t info = {};

	TEST_ASSERT(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT),
		    "waitid() failed");
	return !info.si_pid;
}

static bool is_blocked(pid_t pid)
{
	char path[64], state;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "r");
	TEST_ASSERT(f, "Failed to open %s", path);
	TEST_ASSERT_EQ(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
	fclose(f);
	return state == 'D';
}

/* Somebody else does something lengthy with the file, the conversion has to wait. */
TEST_F(signals, waiting)
{
	struct owner *owner = &self->owner;
	struct gmem_info info, before = { .ranges = 1 };
	bool in_time, died_in_time;
	int i, status;
	pid_t pid;

	for (i = 0; i < NR_ATTEMPTS; i++) {
		start_owner(owner, SIZE);
		pid = start_allocating(owner);

		send_convert(owner, ATTR_PRIVATE);
		while (is_running(pid) && !is_blocked(owner->pid))
			wait_a_bit();
		in_time = is_running(pid);
		send_signal(self, variant);
		if (!wait_for_effect(self, variant))
			in_time = false;

		/*
		 * An owner that dies sleeps now and then, e.g. for a grace period, until
		 * a timer fires, which may be late, and allocating goes on meanwhile.
		 */
		died_in_time = !variant->fatal || is_running(pid);

		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT_EQ(status, 0);
		if (in_time && died_in_time)
			break;
	}

	TEST_ASSERT(in_time, "The signal was too late, %d times in a row", i);
	TEST_ASSERT(died_in_time, "The owner died too late, %d times in a row", i);

	/*
	 * A conversion that didn't begin isn't a failed one.  The owner may have had the
	 * lock between two pages that were allocated, and have begun.
	 */
	gmem_read_info(owner->fd, &info);
	TEST_ASSERT(info.refused <= variant->fatal, "%llu failures", info.refused);
	before.populated = SIZE / page_size;
	before.refused = info.refused - variant->fatal;
	check_state(self, variant, &before, ATTR_PRIVATE);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
