// SPDX-License-Identifier: GPL-2.0-only
/*
 * Conversions to private don't fail for references that nobody has on purpose, and
 * that will be gone as soon as somebody gets the CPU: of processes that fault,
 * unmap, or exit, and of the kernel when it looks at pages.  Neither does a vCPU
 * exit because memory is converted while it faults.
 *
 * Run it on a busy machine, too, and on a kernel that can be preempted anywhere.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "guest_memfd_util.h"
#include "kselftest_harness.h"

/* Machines may be slow, and busy: it's for what hangs. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

#define NR_PAGES	1024
#define MEM_GPA		0x40000000ul
#define MEM_SLOT	10

/* How many times the memory is converted to private, and back. */
#define NR_ROUNDS	150

static size_t page_size;

FIXTURE(transient) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	u8 *mem;
	size_t size;
};

#define transient_data FIXTURE_DATA(transient)

static void guest_code(u64 size, u64 page_size)
{
	u64 offset;

	for (;;) {
		for (offset = 0; offset < size; offset += page_size)
			READ_ONCE(*(u64 *)(MEM_GPA + offset));
	}
}

FIXTURE_SETUP(transient)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};

	if (!arch_has_private_vms())
		SKIP(return, "Needs VMs with private memory");

	self->size = NR_PAGES * page_size;
	self->vm = __vm_create(shape, 1, NR_PAGES);
	vm_enable_gmem_attributes(self->vm);
	self->vcpu = vm_vcpu_add(self->vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(self->vm);
	self->fd = vm_create_guest_memfd(self->vm, self->size, MMAP_SHARED);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	memset(self->mem, 1, self->size);
}

FIXTURE_TEARDOWN(transient)
{
	if (!self->vm)
		return;

	kvm_munmap(self->mem, self->size);
	kvm_close(self->fd);
	kvm_vm_free(self->vm);
}

static u8 *map(transient_data *self)
{
	return mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
}

static sigjmp_buf sigbus_jmp;

static void handle_sigbus(int sig)
{
	siglongjmp(sigbus_jmp, 1);
}

/* Read what is shared.  The rest is a SIGBUS, and the end of it. */
static void touch(transient_data *self, u8 *mem)
{
	size_t offset;

	if (sigsetjmp(sigbus_jmp, 1))
		return;

	for (offset = 0; offset < self->size; offset += page_size)
		READ_ONCE(mem[offset]);
}

static void map_and_unmap(transient_data *self)
{
	for (;;) {
		u8 *mem = map(self);

		touch(self, mem);
		munmap(mem, self->size);
	}
}

static void zap(transient_data *self)
{
	u8 *mem = map(self);

	for (;;) {
		touch(self, mem);
		madvise(mem, self->size, MADV_DONTNEED);
	}
}

static void replace(transient_data *self)
{
	u8 *mem = map(self);

	for (;;) {
		touch(self, mem);
		mem = mmap(mem, self->size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, self->fd, 0);
	}
}

static void fork_and_exit(transient_data *self)
{
	for (;;) {
		pid_t pid = fork();

		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			touch(self, map(self));
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
}

/* What the kernel is asked to look at, it has a reference to. */
static void look(transient_data *self)
{
	u8 *mem = map(self), vec[NR_PAGES];
	void *pages[NR_PAGES];
	int i, status[NR_PAGES];

	for (i = 0; i < NR_PAGES; i++)
		pages[i] = mem + i * page_size;

	for (;;) {
		touch(self, mem);
		mincore(mem, self->size, vec);
		syscall(__NR_move_pages, 0, NR_PAGES, pages, NULL, status, 0);
		madvise(mem, self->size, MADV_COLD);
		mlock(mem, self->size);
		munlock(mem, self->size);
	}
}

static pid_t start(transient_data *self, void (*fn)(transient_data *self), int policy)
{
	const struct sched_param param = { 0 };
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed");
	if (pid)
		return pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, handle_sigbus);
	sched_setscheduler(0, policy, &param);
	fn(self);
	_exit(1);
}

static void spin(transient_data *self)
{
	for (;;)
		;
}

static void stop(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status),
		    "Another process ended by itself, with status 0x%x", status);
}

static void convert_all(transient_data *self, u64 attributes)
{
	u64 error_offset;
	int r = __try_convert(self->fd, 0, self->size, attributes, &error_offset);

	TEST_ASSERT(!r, "Failed to convert to %s: %s, offset 0x%lx",
		    attributes ? "private" : "shared", strerror(r), error_offset);
}

static void convert_while(transient_data *self, void (*fn)(transient_data *self))
{
	const int policies[] = { SCHED_OTHER, SCHED_IDLE };
	pid_t spinner = start(self, spin, SCHED_OTHER), pid;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		pid = start(self, fn, policies[i]);
		for (j = 0; j < NR_ROUNDS; j++) {
			convert_all(self, ATTR_PRIVATE);
			convert_all(self, ATTR_SHARED);
			sched_yield();
		}
		stop(pid);
	}
	stop(spinner);
}

TEST_F(transient, map_and_unmap)
{
	convert_while(self, map_and_unmap);
}

TEST_F(transient, zap)
{
	convert_while(self, zap);
}

TEST_F(transient, replace)
{
	convert_while(self, replace);
}

TEST_F(transient, fork_and_exit)
{
	convert_while(self, fork_and_exit);
}

TEST_F(transient, look)
{
	convert_while(self, look);
}

static bool guest_stop;

static void *run_guest(void *arg)
{
	transient_data *self = arg;
	struct kvm_run *run = self->vcpu->run;
	int r;

	while (!READ_ONCE(guest_stop)) {
		r = __vcpu_run(self->vcpu);
		TEST_ASSERT(r && errno == EINTR,
			    "The vCPU exited: %d, errno %d, exit reason %u, flags 0x%llx",
			    r, errno, run->exit_reason,
			    r ? run->memory_fault.flags : 0);
	}
	return NULL;
}

static void ignore(int sig)
{
}

/* A guest that merely touches memory has no reason to exit. */
TEST_F(transient, guest)
{
	pthread_t thread;
	u64 attributes;
	int i, j;

	vm_set_user_memory_region2(self->vm, MEM_SLOT, KVM_MEM_GUEST_MEMFD, MEM_GPA,
				   self->size, self->mem, self->fd, 0);
	for (i = 0; i < NR_PAGES; i++)
		virt_pg_map(self->vm, MEM_GPA + i * page_size, MEM_GPA + i * page_size);
	vcpu_args_set(self->vcpu, 2, self->size, page_size);

	/* Without SA_RESTART, for KVM_RUN to return. */
	sigaction(SIGUSR1, &(struct sigaction) { .sa_handler = ignore }, NULL);
	guest_stop = false;
	pthread_create(&thread, NULL, run_guest, self);
	for (j = 0; j < 2 * NR_ROUNDS; j++) {
		attributes = j & 1 ? ATTR_SHARED : ATTR_PRIVATE;
		convert_all(self, attributes);
		pthread_kill(thread, SIGUSR1);
	}
	WRITE_ONCE(guest_stop, true);
	while (pthread_tryjoin_np(thread, NULL)) {
		pthread_kill(thread, SIGUSR1);
		sched_yield();
	}
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();

	return test_harness_run(argc, argv);
}
