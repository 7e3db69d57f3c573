/* SPDX-License-Identifier: GPL-2.0 */
/*
 * guest_memfd_convert.c on arm64: a guest that asks with a hypercall of its own,
 * as there is none for a range of pages.  Linux guests ask for a page at a time,
 * with MEM_SHARE and MEM_UNSHARE, see guest_memfd_linux.c.
 */

#include "arm64_regs.h"

/* A multiple of the page size, which can be any of 4, 16 and 64 KiB. */
#define PAGE		0x10000

/*
 * The hypercall, out of the numbers that are for hypervisors to use, with the
 * address, the number of pages and whether or not to make them private in X1 to
 * X3.  The answer goes to X0.
 */
#define HVC_CONVERT	0xc6001000

/* Where the guest's stores go, there's no memory at these addresses. */
#define ADDR_CHAR	0x10		/* one character of what the guest reads */
#define ADDR_STEP	0x11		/* the number of the step it completed */
#define ADDR_STOP	0x12		/* the guest gives up */

/* The guest, with the MMU off.  It starts at guest_code, and has no stack. */
#define GUEST_SET(reg, value)	"ldr	" reg ", =" STR(value) "\n"
#define GUEST_STEP_DONE(n)						\
	"mov	w4, #" STR(n) "\n"					\
	"mov	w5, #" STR(ADDR_STEP) "\n"				\
	"strb	w4, [x5]\n"
#define GUEST_ASK(offset, npages, private)				\
	GUEST_SET("w1", MEM_GPA + (offset))				\
	"mov	x2, #" STR(npages) "\n"					\
	"mov	x3, #" STR(private) "\n"				\
	"bl	guest_ask\n"

asm(".pushsection .rodata\n"
	".balign 4\n"
	".globl	guest_code, guest_code_end\n"
	"guest_code:\n"
	/* Read what the host has written. */
	"bl	guest_show\n" GUEST_STEP_DONE(1)
	/* Ask for the page to be made private. */
	GUEST_ASK(TEXT_OFF, 1, 1) GUEST_STEP_DONE(2)
	/* Read the page again, and write something else to it. */
	"bl	guest_show\n"
	"adr	x1, new_text\n"
	GUEST_SET("w2", MEM_GPA + TEXT_OFF)
	"1: ldrb w3, [x1], #1\n"
	"strb	w3, [x2], #1\n"
	"cbnz	w3, 1b\n" GUEST_STEP_DONE(3)
	/* Ask for the page to be shared again. */
	GUEST_ASK(TEXT_OFF, 1, 0) GUEST_STEP_DONE(4)
	/* Ask for eight other pages to be made private. */
	GUEST_ASK(RANGE_OFF, RANGE_PAGES, 1) GUEST_STEP_DONE(5)

	/* The hypercall.  If it fails, stop. */
	"guest_ask:\n"
	GUEST_SET("w0", HVC_CONVERT)
	"hvc	#0\n"
	"cbz	x0, 1f\n"
	"mov	w5, #" STR(ADDR_STOP) "\n"
	"strb	w0, [x5]\n"
	"1: ret\n"
	/* Read the string in the page, and pass it to the VMM. */
	"guest_show:\n"
	GUEST_SET("w1", MEM_GPA + TEXT_OFF)
	"mov	w5, #" STR(ADDR_CHAR) "\n"
	"1: ldrb w3, [x1]\n"
	"add	x1, x1, #1\n"
	"strb	w3, [x5]\n"
	"cbnz	w3, 1b\n"
	"ret\n"
	"new_text: .asciz \"" GUEST_TEXT "\"\n"
	".balign 4\n"
	".ltorg\n"
	"guest_code_end:\n"
	".popsection\n");

extern const char guest_code[], guest_code_end[];

static void create_private_vm(void)
{
	struct kvm_smccc_filter filter = {
		.base = HVC_CONVERT,
		.nr_functions = 1,
		.action = KVM_SMCCC_FILTER_FWD_TO_USER,
	};
	struct kvm_device_attr attr = {
		.group = KVM_ARM_VM_SMCCC_CTRL,
		.attr = KVM_ARM_VM_SMCCC_FILTER,
		.addr = (unsigned long)&filter,
	};

	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_VM_TYPE_ARM_SW_PROTECTED);
	if (vm_fd < 0)
		err(1, "no software-protected VMs, use a kernel with KVM_SW_PROTECTED_VM");

	/* Without this, KVM fails the hypercall and the VMM never sees it. */
	if (ioctl(vm_fd, KVM_SET_DEVICE_ATTR, &attr))
		err(1, "KVM_ARM_VM_SMCCC_FILTER");
}

static void init_vcpu(void)
{
	struct kvm_vcpu_init init;

	if (ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, &init) ||
	    ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init))
		err(1, "KVM_ARM_VCPU_INIT");
	set_reg(CORE_REG(regs.pc), MEM_GPA + CODE_OFF);
}

/* What does the exit mean?  Returns -1 if it means nothing to this VMM. */
static int next_event(struct guest_event *event)
{
	switch (run->exit_reason) {
	case KVM_EXIT_HYPERCALL:
		event->what = GUEST_ASKS;
		event->gpa = get_reg(CORE_REG(regs.regs[1]));
		event->npages = get_reg(CORE_REG(regs.regs[2]));
		event->private = get_reg(CORE_REG(regs.regs[3])) & 1;
		return 0;
	case KVM_EXIT_MMIO:
		if (!run->mmio.is_write || run->mmio.phys_addr == ADDR_STOP)
			return -1;
		event->what = run->mmio.phys_addr == ADDR_STEP ? GUEST_STEP : GUEST_SAYS;
		event->value = run->mmio.data[0];
		return 0;
	default:
		return -1;
	}
}

/* The guest finds the answer in X0. */
static void answer_guest(int ret)
{
	set_reg(CORE_REG(regs.regs[0]), ret);
}
