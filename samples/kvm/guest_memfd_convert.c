// SPDX-License-Identifier: GPL-2.0
/*
 * Convert guest_memfd memory in place: a complete, small VMM.
 *
 * A page of a guest_memfd is either shared, and then the VMM may map it like
 * any other memory, or private, and then only the guest may touch it.  A VMM
 * changes that with KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd itself.  The
 * physical page stays where it is and, in the software-protected VM used here,
 * keeps its contents.
 *
 * This program has one VM with one vCPU and one guest_memfd, and a guest of a
 * few dozen instructions that asks for conversions.  It prints what it expected
 * and what happened, and exits with 0 only if the two always agree.  It needs
 * access to /dev/kvm, and CAP_SYS_ADMIN to compare page frames.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/kvm.h>

/*
 * One guest_memfd of 16 pages is all the memory the guest has.  The guest sees
 * it at 1 MiB: conversions take offsets in the file, guests talk of addresses,
 * and the VMM translates.
 */
#define MEM_GPA		0x100000
#define MEM_SIZE	(16 * PAGE)

#define CODE_OFF	0		/* guest code and stack, always shared */
#define TEXT_OFF	(1 * PAGE)	/* the page that goes back and forth */
#define RANGE_OFF	(8 * PAGE)	/* eight pages, converted in one call... */
#define RANGE_PAGES	8
#define PINNED_OFF	(10 * PAGE)	/* ...while the third is pinned */

#define HOST_TEXT	"written by the host"
#define GUEST_TEXT	"changed by the guest"

static int kvm_fd, vm_fd, gmem_fd, vcpu_fd;
static struct kvm_run *run;
static char *mem;		/* the guest_memfd, as mapped by the host */
static char guest_said[64];	/* the string that the guest said last */

/* What the guest does that is of interest to the VMM. */
struct guest_event {
	enum {
		GUEST_SAYS,	/* one character, value, of a string */
		GUEST_STEP,	/* it completed step number value */
		GUEST_ASKS,	/* it wants a conversion, and an answer */
	} what;
	int value;
	__u64 gpa, npages;	/* GUEST_ASKS: the memory that is to be... */
	int private;		/* ...private, or else shared */
};

/*
 * What depends on the architecture: the size of a PAGE, the guest's code,
 * create_private_vm(), init_vcpu(), next_event(), and answer_guest().
 */
#define STR_(x)		#x
#define STR(x)		STR_(x)
#ifdef __x86_64__
#include "guest_memfd_convert_x86.h"
#elif defined(__aarch64__)
#include "guest_memfd_convert_arm64.h"
#else
#error "Tell the sample how to run a guest"
#endif

/* The story: one line per event, with what was expected and what happened. */
static int nr_checks, nr_wrong;

static void check(const char *what, const char *want, const char *got)
{
	int ok = !strcmp(want, got);

	nr_checks++;
	nr_wrong += !ok;
	printf("[%d] %s: expected %s, got %s   %s\n", nr_checks, what, want, got,
	       ok ? "ok" : "WRONG");
}

static void check_nr(const char *what, unsigned long want, unsigned long got)
{
	char w[32], g[32];

	snprintf(w, sizeof(w), want < 10 ? "%lu" : "%#lx", want);
	snprintf(g, sizeof(g), got < 10 ? "%lu" : "%#lx", got);
	check(what, w, g);
}

static const char *errno_name(int err)
{
	if (err == EAGAIN)
		return "EAGAIN";
	if (err == EFAULT)
		return "EFAULT";
	return err ? strerror(err) : "success";
}

/*
 * Host access.  Touching a private page raises SIGBUS, in every process that
 * maps the file.  A real VMM does not touch private pages, and should treat
 * SIGBUS as the bug that it is.
 */
static sigjmp_buf bus_error;

static void on_sigbus(int sig)
{
	siglongjmp(bus_error, sig);
}

static const char *host_read(unsigned long offset)
{
	static char text[64];
	const char *result = "SIGBUS";

	signal(SIGBUS, on_sigbus);
	if (!sigsetjmp(bus_error, 1)) {
		memcpy(text, mem + offset, sizeof(text) - 1);
		result = text;
	}
	signal(SIGBUS, SIG_DFL);
	return result;
}

/* How many of the pages that step 5 asks for can the host read? */
static int host_can_read(void)
{
	int i, n = 0;

	for (i = 0; i < RANGE_PAGES; i++)
		n += !!strcmp(host_read(RANGE_OFF + i * PAGE), "SIGBUS");
	return n;
}

/* A reference to a page, held by a pipe: vmsplice() does not copy, it pins. */
static int pipe_fds[2];

static int pin_page(unsigned long offset)
{
	struct iovec iov = { mem + offset, PAGE };

	return vmsplice(pipe_fds[1], &iov, 1, 0) == PAGE ? 0 : errno;
}

/* Once the page's data has been read from the pipe, the reference is gone. */
static void unpin_page(void)
{
	char data[PAGE];

	if (read(pipe_fds[0], data, PAGE) != PAGE)
		err(1, "read from the pipe");
}

/* The page frame at an offset, or 0 if the kernel does not tell. */
static unsigned long page_frame(unsigned long offset)
{
	off_t pos = (unsigned long)(mem + offset) / getpagesize() * sizeof(__u64);
	int fd = open("/proc/self/pagemap", O_RDONLY);
	__u64 entry;

	host_read(offset);		/* pagemap knows mapped pages only */
	if (pread(fd, &entry, sizeof(entry), pos) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/*
 * The conversion.  The VM may be running, and nobody has to unmap anything:
 * mappings, the host's as well as the guest's, are not references, and KVM cuts
 * those that must go.  Returns 0 or an errno.  With EAGAIN, *busy is the offset
 * of the first page that is in the way.
 */
static int convert(__u64 offset, __u64 size, __u64 attributes, __u64 *busy)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
	};

	if (!ioctl(gmem_fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs))
		return 0;
	*busy = attrs.error_offset;
	return errno;
}

/*
 * EAGAIN: somebody refers to a page that is to become private, and could reach
 * it behind KVM's back.  References are held by whatever pins user memory: I/O
 * in flight (O_DIRECT, vmsplice), buffers registered with io_uring, devices
 * assigned with VFIO.  They are there because the VMM, or a process it gave the
 * memory to, asked for them, so that the VMM can know whom to tell to let go.
 *
 * A call that fails has changed nothing, not even in front of the busy page.
 * So the rule is: have the page at error_offset released, then repeat the very
 * same call.  It may fail again, at a later page.
 */
static void release_busy_page(__u64 busy)
{
	check_nr("error_offset names the pinned page", PINNED_OFF, busy);
	check_nr("pages of the eight that the host can read", RANGE_PAGES, host_can_read());
	unpin_page();
}

/*
 * The guest's request.  The guest chooses the arguments: trust none of them.
 * What is returned here is for the guest.  Do not wait for a busy page forever:
 * a guest can ask for any page, at any time, and as often as it likes.
 */
static int serve(const struct guest_event *ask)
{
	__u64 private = ask->private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
	__u64 offset = ask->gpa - MEM_GPA, npages = ask->npages, busy = 0;
	int err, tries = 3;
	char what[64];

	if (ask->gpa < MEM_GPA || offset >= MEM_SIZE || offset % PAGE ||
	    !npages || npages > (MEM_SIZE - offset) / PAGE)
		return -EINVAL;

	err = convert(offset, npages * PAGE, private, &busy);
	snprintf(what, sizeof(what), "guest asks for %s, VMM converts %llu page%s",
		 private ? "private" : "shared", npages, npages > 1 ? "s, one pinned" : "");
	check(what, offset == RANGE_OFF ? "EAGAIN" : "success", errno_name(err));

	while (err == EAGAIN && tries--) {
		release_busy_page(busy);
		err = convert(offset, npages * PAGE, private, &busy);
		check("same call, page unpinned", "success", errno_name(err));
	}
	return -err;
}

/* Run the guest up to the end of a step. */
static void run_guest(int step)
{
	struct guest_event event;
	size_t len = 0;

	guest_said[0] = '\0';
	for (;;) {
		if (ioctl(vcpu_fd, KVM_RUN, 0))
			err(1, "KVM_RUN");
		if (next_event(&event))
			errx(1, "step %d: unexpected exit from the guest, reason %u",
			     step, run->exit_reason);

		switch (event.what) {
		case GUEST_ASKS:
			answer_guest(serve(&event));
			break;
		case GUEST_SAYS:
			if (len < sizeof(guest_said) - 1)
				guest_said[len++] = event.value;
			guest_said[len] = '\0';
			break;
		case GUEST_STEP:
			if (event.value == step)
				return;
			errx(1, "step %d: the guest is at step %d", step, event.value);
		}
	}
}

/*
 * Private/shared state is kept either in the VM or in its guest_memfds.  The
 * host has a default for new VMs (kvm.vm_memory_attributes).  If that is the
 * VM, choose guest_memfd, before there is a guest_memfd or a vCPU.
 */
static void track_attributes_in_guest_memfd(void)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
		.args[0] = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, cap.cap) <= 0)
		ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, cap.cap) <= 0)
		errx(1, "no in-place conversion, use a kernel with KVM_SET_MEMORY_ATTRIBUTES2");
}

/*
 * Private and shared pages alike come from the guest_memfd.  INIT_SHARED, since
 * the host is to fill in the code: without it, every page starts private.
 */
static void create_memory(void)
{
	struct kvm_create_guest_memfd gmem = {
		.size = MEM_SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = MEM_GPA,
		.memory_size = MEM_SIZE,
	};

	gmem_fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &gmem);
	if (gmem_fd < 0)
		err(1, "KVM_CREATE_GUEST_MEMFD");
	mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_fd, 0);
	if (mem == MAP_FAILED)
		err(1, "mmap of the guest_memfd");

	/* KVM itself reads and writes guest memory through userspace_addr. */
	slot.guest_memfd = gmem_fd;
	slot.userspace_addr = (unsigned long)mem;
	if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot))
		err(1, "KVM_SET_USER_MEMORY_REGION2");
}

static void create_vcpu(void)
{
	int run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	if (vcpu_fd < 0)
		err(1, "KVM_CREATE_VCPU");
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");

	init_vcpu();
}

static void load_guest(void)
{
	memcpy(mem + CODE_OFF, guest_code, guest_code_end - guest_code);
}

int main(void)
{
	unsigned long frame;

	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		err(1, "cannot open /dev/kvm, load KVM or become a user who may use it");
	if (pipe2(pipe_fds, O_NONBLOCK))
		err(1, "pipe2");

	setvbuf(stdout, NULL, _IOLBF, 0);
	create_private_vm();
	track_attributes_in_guest_memfd();
	create_memory();
	create_vcpu();
	load_guest();

	memcpy(mem + TEXT_OFF, HOST_TEXT, sizeof(HOST_TEXT));
	frame = page_frame(TEXT_OFF);
	run_guest(1);
	check("guest reads the page", HOST_TEXT, guest_said);

	run_guest(2);
	check("host reads the private page", "SIGBUS", host_read(TEXT_OFF));
	check("host passes the private page to a system call", "EFAULT",
	      errno_name(pin_page(TEXT_OFF)));

	run_guest(3);
	check("guest reads the private page", HOST_TEXT, guest_said);
	check("guest changes the page, host reads it", "SIGBUS",
	      host_read(TEXT_OFF));

	run_guest(4);
	check("host reads the shared page", GUEST_TEXT, host_read(TEXT_OFF));
	if (frame)
		check_nr("page frame now, and at the start", frame, page_frame(TEXT_OFF));
	else
		printf("[-] page frame: not compared, it takes CAP_SYS_ADMIN to see it\n");

	if (pin_page(PINNED_OFF))
		err(1, "vmsplice");
	run_guest(5);
	check_nr("pages of the eight that the host can read", 0, host_can_read());

	printf("%d of %d as expected%s\n", nr_checks - nr_wrong, nr_checks,
	       frame ? "" : ", page frames not compared");
	return nr_wrong ? 1 : 0;
}
