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
#include <cpuid.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/kvm_para.h>

#define PAGE		4096

/*
 * One guest_memfd of 16 pages is all the memory the guest has.  The guest sees
 * it at 1 MiB: conversions take offsets in the file, guests talk of addresses,
 * and the VMM translates.
 */
#define MEM_GPA		0x100000
#define MEM_SIZE	(16 * PAGE)

#define CODE_OFF	0x0000		/* guest code and stack, always shared */
#define TEXT_OFF	0x1000		/* the page that goes back and forth */
#define RANGE_OFF	0x8000		/* eight pages, converted in one call... */
#define RANGE_PAGES	8
#define PINNED_OFF	0xa000		/* ...while the third is pinned */

#define HOST_TEXT	"written by the host"
#define GUEST_TEXT	"changed by the guest"

/* Where the guest's OUT instructions go. */
#define PORT_CHAR	0x10		/* one character of what the guest reads */
#define PORT_STEP	0x11		/* the number of the step it completed */

/*
 * The guest: 32-bit code, flat segments, no paging.  It starts at guest_code,
 * with ESP at the end of the page, and with EBP != 0 if the CPU's hypercall
 * instruction is VMMCALL rather than VMCALL.  (Given the wrong one, KVM patches
 * the code in guest memory, which ends badly if that page is private.)
 */
#define STR_(x)		#x
#define STR(x)		STR_(x)
#define GUEST_STEP(n)							\
	"mov	$" STR(n) ", %al\n"					\
	"out	%al, $" STR(PORT_STEP) "\n"
#define GUEST_ASK(offset, npages, attrs)				\
	"mov	$" STR(MEM_GPA + (offset)) ", %ebx\n"			\
	"mov	$" STR(npages) ", %ecx\n"				\
	"mov	$" STR(attrs) ", %edx\n"				\
	"call	guest_ask\n"

asm(".pushsection .rodata\n"
	".code32\n"
	"guest_code:\n"
	/* Read what the host has written. */
	"call	guest_show\n" GUEST_STEP(1)
	/* Ask for the page to be made private. */
	GUEST_ASK(TEXT_OFF, 1, KVM_MAP_GPA_RANGE_ENCRYPTED) GUEST_STEP(2)
	/* Read the page again, and write something else to it. */
	"call	guest_show\n"
	"mov	$(" STR(MEM_GPA + CODE_OFF) " + new_text - guest_code), %esi\n"
	"mov	$" STR(MEM_GPA + TEXT_OFF) ", %edi\n"
	"mov	$(new_text_end - new_text), %ecx\n"
	"rep movsb\n" GUEST_STEP(3)
	/* Ask for the page to be shared again. */
	GUEST_ASK(TEXT_OFF, 1, KVM_MAP_GPA_RANGE_DECRYPTED) GUEST_STEP(4)
	/* Ask for eight other pages to be made private. */
	GUEST_ASK(RANGE_OFF, RANGE_PAGES, KVM_MAP_GPA_RANGE_ENCRYPTED) GUEST_STEP(5)

	/* The hypercall, KVM_HC_MAP_GPA_RANGE.  If it fails, stop. */
	"guest_ask:\n"
	"mov	$" STR(KVM_HC_MAP_GPA_RANGE) ", %eax\n"
	"test	%ebp, %ebp\n"
	"jnz	1f\n"
	"vmcall; jmp 2f\n"
	"1: vmmcall\n"
	"2: test %eax, %eax\n"
	"jz	3f\n"
	"hlt\n"
	"3: ret\n"
	/* Read the string in the page, and pass it to the VMM. */
	"guest_show:\n"
	"mov	$" STR(MEM_GPA + TEXT_OFF) ", %esi\n"
	"1: lodsb\n"
	"out	%al, $" STR(PORT_CHAR) "\n"
	"test	%al, %al\n"
	"jnz	1b\n"
	"ret\n"
	"new_text: .asciz \"" GUEST_TEXT "\"\n"
	"new_text_end:\n"
	"guest_code_end:\n"
	".code64\n"
	".popsection\n");

static int vm_fd, gmem_fd, vcpu_fd;
static struct kvm_run *run;
static char *mem;		/* the guest_memfd, as mapped by the host */
static char guest_said[64];	/* the latest string received at PORT_CHAR */

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
	off_t pos = (unsigned long)(mem + offset) / PAGE * sizeof(__u64);
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
 * The hypercall.  The guest chooses the arguments: trust none of them.  What is
 * returned here, the guest finds in EAX.  Do not wait for a busy page forever:
 * a guest can ask for any page, at any time, and as often as it likes.
 */
static int map_gpa_range(__u64 gpa, __u64 npages, __u64 attrs)
{
	__u64 private = attrs & KVM_MAP_GPA_RANGE_ENCRYPTED ?
			KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
	__u64 offset = gpa - MEM_GPA, busy = 0;
	int err, tries = 3;
	char what[64];

	if (gpa < MEM_GPA || offset >= MEM_SIZE || offset % PAGE ||
	    !npages || npages > (MEM_SIZE - offset) / PAGE)
		return -KVM_EINVAL;

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
	size_t len = 0;
	int value;

	guest_said[0] = '\0';
	while (!ioctl(vcpu_fd, KVM_RUN, 0)) {
		if (run->exit_reason == KVM_EXIT_HYPERCALL &&
		    run->hypercall.nr == KVM_HC_MAP_GPA_RANGE) {
			run->hypercall.ret = map_gpa_range(run->hypercall.args[0],
							   run->hypercall.args[1],
							   run->hypercall.args[2]);
			continue;
		}
		if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "step %d: unexpected exit from the guest, reason %u",
			     step, run->exit_reason);

		value = *((unsigned char *)run + run->io.data_offset);
		if (run->io.port == PORT_STEP) {
			if (value != step)
				errx(1, "step %d: the guest is at step %d", step, value);
			return;
		}
		if (len < sizeof(guest_said) - 1)
			guest_said[len++] = value;
		guest_said[len] = '\0';
	}
	err(1, "KVM_RUN");
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

static void create_vm(int kvm_fd)
{
	struct kvm_enable_cap exit_hypercall = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
	};
	int types = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);

	if (types < 0 || !(types & (1 << KVM_X86_SW_PROTECTED_VM)))
		errx(1, "no software-protected VMs, use a kernel with KVM_SW_PROTECTED_VM");

	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");
	track_attributes_in_guest_memfd();

	/* Without this, KVM fails the hypercall and the VMM never sees it. */
	if (ioctl(vm_fd, KVM_ENABLE_CAP, &exit_hypercall))
		err(1, "KVM_CAP_EXIT_HYPERCALL");
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

static void load_guest(void)
{
	const char *start, *end;

	asm("lea	guest_code(%%rip), %0\n"
	    "lea	guest_code_end(%%rip), %1\n"
	    : "=r" (start), "=r" (end));
	memcpy(mem + CODE_OFF, start, end - start);
}

static void create_vcpu(int kvm_fd)
{
	int run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_segment flat = {
		.limit = 0xffffffff, .present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct kvm_regs regs = {
		.rip = MEM_GPA + CODE_OFF,
		.rsp = MEM_GPA + CODE_OFF + PAGE,
		.rflags = 2,
	};
	unsigned int eax, ebx, ecx, edx;
	struct kvm_sregs sregs;

	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	if (vcpu_fd < 0)
		err(1, "KVM_CREATE_VCPU");
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");

	/* Protected mode without paging; the guest never loads a segment. */
	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.cr0 = 0x11;		/* PE and ET */
	flat.selector = 8;
	flat.type = 11;			/* code, execute and read */
	sregs.cs = flat;
	flat.selector = 16;
	flat.type = 3;			/* data, read and write */
	sregs.ds = flat;
	sregs.es = flat;
	sregs.ss = flat;

	/* A CPU with SVM is one whose hypercall instruction is VMMCALL. */
	if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx))
		regs.rbp = !!(ecx & (1 << 2));

	if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu_fd, KVM_SET_REGS, &regs))
		err(1, "setting the vCPU's registers");
}

int main(void)
{
	int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	unsigned long frame;

	if (kvm_fd < 0)
		err(1, "cannot open /dev/kvm, load KVM or become a user who may use it");
	if (pipe2(pipe_fds, O_NONBLOCK))
		err(1, "pipe2");

	setvbuf(stdout, NULL, _IOLBF, 0);
	create_vm(kvm_fd);
	create_memory();
	create_vcpu(kvm_fd);
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
