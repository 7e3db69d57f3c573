/* SPDX-License-Identifier: GPL-2.0 */
/*
 * guest_memfd_convert.c on x86: a guest that asks with KVM_HC_MAP_GPA_RANGE, as
 * Linux does.
 */
#include <cpuid.h>
#include <linux/kvm_para.h>

#define PAGE		4096

/* Where the guest's OUT instructions go. */
#define PORT_CHAR	0x10		/* one character of what the guest reads */
#define PORT_STEP	0x11		/* the number of the step it completed */

/*
 * The guest: 32-bit code, flat segments, no paging.  It starts at guest_code,
 * with ESP at the end of the page, and with EBP != 0 if the CPU's hypercall
 * instruction is VMMCALL rather than VMCALL.  (Given the wrong one, KVM patches
 * the code in guest memory, which ends badly if that page is private.)
 */
#define GUEST_STEP_DONE(n)						\
	"mov	$" STR(n) ", %al\n"					\
	"out	%al, $" STR(PORT_STEP) "\n"
#define GUEST_ASK(offset, npages, attrs)				\
	"mov	$" STR(MEM_GPA + (offset)) ", %ebx\n"			\
	"mov	$" STR(npages) ", %ecx\n"				\
	"mov	$" STR(attrs) ", %edx\n"				\
	"call	guest_ask\n"

asm(".pushsection .rodata\n"
	".code32\n"
	".globl	guest_code, guest_code_end\n"
	"guest_code:\n"
	/* Read what the host has written. */
	"call	guest_show\n" GUEST_STEP_DONE(1)
	/* Ask for the page to be made private. */
	GUEST_ASK(TEXT_OFF, 1, KVM_MAP_GPA_RANGE_ENCRYPTED) GUEST_STEP_DONE(2)
	/* Read the page again, and write something else to it. */
	"call	guest_show\n"
	"mov	$(" STR(MEM_GPA + CODE_OFF) " + new_text - guest_code), %esi\n"
	"mov	$" STR(MEM_GPA + TEXT_OFF) ", %edi\n"
	"mov	$(new_text_end - new_text), %ecx\n"
	"rep movsb\n" GUEST_STEP_DONE(3)
	/* Ask for the page to be shared again. */
	GUEST_ASK(TEXT_OFF, 1, KVM_MAP_GPA_RANGE_DECRYPTED) GUEST_STEP_DONE(4)
	/* Ask for eight other pages to be made private. */
	GUEST_ASK(RANGE_OFF, RANGE_PAGES, KVM_MAP_GPA_RANGE_ENCRYPTED) GUEST_STEP_DONE(5)

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

extern const char guest_code[], guest_code_end[];

static void create_private_vm(void)
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

	/* Without this, KVM fails the hypercall and the VMM never sees it. */
	if (ioctl(vm_fd, KVM_ENABLE_CAP, &exit_hypercall))
		err(1, "KVM_CAP_EXIT_HYPERCALL");
}

static void init_vcpu(void)
{
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

/* What does the exit mean?  Returns -1 if it means nothing to this VMM. */
static int next_event(struct guest_event *event)
{
	switch (run->exit_reason) {
	case KVM_EXIT_HYPERCALL:
		if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE)
			return -1;
		event->what = GUEST_ASKS;
		event->gpa = run->hypercall.args[0];
		event->npages = run->hypercall.args[1];
		event->private = !!(run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED);
		return 0;
	case KVM_EXIT_IO:
		event->what = run->io.port == PORT_STEP ? GUEST_STEP : GUEST_SAYS;
		event->value = *((unsigned char *)run + run->io.data_offset);
		return 0;
	default:
		return -1;
	}
}

/* The guest finds the answer in EAX. */
static void answer_guest(int ret)
{
	run->hypercall.ret = ret;
}
