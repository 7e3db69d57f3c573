// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's own accesses to guest memory that is guest_memfd's, while something else
 * is mapped at userspace_addr: KVM gets at the file's page while that is shared,
 * or fails, and leaves what is at userspace_addr alone.  Guests' accesses are up
 * to guest_memfd_userspace_addr_test.
 */
#include "apic.h"
#include "guest_memfd_uaddr.h"
#include "hyperv.h"
#include "kselftest_harness.h"

#define MEM_SLOT	1
#define MEM_BASE	0xc0000000ul
#define MEM_SIZE	(4 * PAGE_SIZE)

/* What KVM accesses is neither in the first page, nor at the start of a page. */
#define ACCESS_PAGE	(MEM_BASE + 2 * PAGE_SIZE)
#define ACCESS_OFFSET	0x140
#define ACCESS_GPA	(ACCESS_PAGE + ACCESS_OFFSET)

#define IO_PORT		0x80
#define IO_BYTE		0x5a
#define MEM_BYTE	0xc3
#define EOI_VECTOR	0x40
#define APF_VECTOR	0x41

enum guest_op { GUEST_NOP, GUEST_OUTS, GUEST_INS, GUEST_CMPXCHG, GUEST_EOI };

/* Who tracks what is private, if anyone does. */
enum tracking { NEVER_PRIVATE, GMEM_TRACKS, VM_TRACKS };

/* What the guest is to do, and what comes of it. */
static u64 guest_op, guest_result;

static void guest_irq_handler(struct ex_regs *regs) { }

static void guest_code(void)
{
	u8 *mem = (u8 *)ACCESS_GPA, val;
	void *p;
	int i;

	x2apic_enable();

	for (;;) {
		p = mem;
		val = MEM_BYTE;

		switch (READ_ONCE(guest_op)) {
		case GUEST_OUTS:
			asm volatile("outsb" : "+S"(p) : "d"(IO_PORT) : "memory");
			break;
		case GUEST_INS:
			asm volatile("insb" : "+D"(p) : "d"(IO_PORT) : "memory");
			break;
		case GUEST_CMPXCHG:
			asm volatile(KVM_FEP "lock cmpxchgb %b2, %1"
				     : "+a"(val), "+m"(*mem) : "q"(IO_BYTE) : "memory");
			break;
		case GUEST_EOI:
			/* KVM takes back what it wrote whenever the guest exits. */
			for (i = 0, val = 0; i < 100 && !val; i++) {
				x2apic_write_reg(APIC_ICR, APIC_DEST_SELF |
						 APIC_INT_ASSERT | EOI_VECTOR);
				asm volatile("sti; nop; cli");
				val = READ_ONCE(*mem);
				x2apic_write_reg(APIC_EOI, 0);
			}
			break;
		}
		WRITE_ONCE(guest_result, val);
		GUEST_SYNC(0);
	}
}

FIXTURE(access) {
	struct uaddr_map uaddr;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
	u8 *page;
	int fd;
	bool shared;
	u32 msr;
	u64 msr_val;
};

FIXTURE_VARIANT(access) {
	enum uaddr uaddr;
	enum tracking tracking;
};

FIXTURE_VARIANT_ADD(access, file) { UADDR_FILE, NEVER_PRIVATE };
FIXTURE_VARIANT_ADD(access, other_memory) { UADDR_OTHER_MEMORY, NEVER_PRIVATE };
FIXTURE_VARIANT_ADD(access, other_gmem) { UADDR_OTHER_GMEM, NEVER_PRIVATE };
FIXTURE_VARIANT_ADD(access, nothing) { UADDR_NOTHING, NEVER_PRIVATE };
FIXTURE_VARIANT_ADD(access, private_file) { UADDR_FILE, GMEM_TRACKS };
FIXTURE_VARIANT_ADD(access, private_other_memory) { UADDR_OTHER_MEMORY, GMEM_TRACKS };
FIXTURE_VARIANT_ADD(access, vm_scoped_other_memory) { UADDR_OTHER_MEMORY, VM_TRACKS };
FIXTURE_VARIANT_ADD(access, vm_scoped_other_gmem) { UADDR_OTHER_GMEM, VM_TRACKS };

#define access_data FIXTURE_DATA(access)
#define access_variant FIXTURE_VARIANT(access)

static void set_slot(access_data *self, u32 flags, u64 size)
{
	vm_set_user_memory_region2(self->vm, MEM_SLOT, flags, MEM_BASE, size,
				   self->uaddr.mem, self->fd, 0);
}

FIXTURE_SETUP(access)
{
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	u64 flags = MMAP_SHARED;

	if (variant->tracking != NEVER_PRIVATE) {
		if (!arch_has_private_vms())
			SKIP(return, "Needs software-protected VMs");
		shape.type = PRIVATE_VM_TYPE;
	}

	self->vm = __vm_create(shape, 1, 0);
	if (variant->tracking == GMEM_TRACKS)
		vm_enable_gmem_attributes(self->vm);
	if (variant->tracking == VM_TRACKS) {
		if (vm_has_gmem_attributes(self->vm))
			SKIP(return, "Needs VMs that track attributes per VM");
		flags = MMAP_PRIVATE;
	}
	self->vcpu = vm_vcpu_add(self->vm, 0, guest_code);
	vm_install_exception_handler(self->vm, EOI_VECTOR, guest_irq_handler);

	self->fd = vm_create_guest_memfd(self->vm, MEM_SIZE, flags);
	self->mem = map_at(NULL, MEM_SIZE, self->fd);
	self->page = self->mem + ACCESS_PAGE - MEM_BASE;
	uaddr_init(&self->uaddr, variant->uaddr, MEM_SIZE, self->fd);
	set_slot(self, KVM_MEM_GUEST_MEMFD, MEM_SIZE);
	virt_map(self->vm, MEM_BASE, MEM_BASE, MEM_SIZE / PAGE_SIZE);

	self->shared = variant->tracking != VM_TRACKS;
	vcpu_run(self->vcpu);
}

FIXTURE_TEARDOWN(access)
{
	if (!self->mem)
		return;
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, MEM_SIZE);
	kvm_close(self->fd);
	uaddr_free(&self->uaddr);
}

/* Returns what the guest found in memory, or what KVM found there. */
static int guest_do(access_data *self, enum guest_op op)
{
	struct kvm_run *run = self->vcpu->run;
	struct ucall uc;
	int val = -1;
	u8 *io;

	*(u64 *)addr_gva2hva(self->vm, (gva_t)&guest_op) = op;
	for (vcpu_run(self->vcpu); ; vcpu_run(self->vcpu)) {
		if (run->exit_reason == KVM_EXIT_MMIO) {
			/* What is no memory, for all KVM knows. */
			TEST_ASSERT_EQ(run->mmio.phys_addr, ACCESS_GPA);
			TEST_ASSERT(!self->shared, "KVM didn't get at the memory");
			memset(run->mmio.data, MEM_BYTE, sizeof(run->mmio.data));
		} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == IO_PORT) {
			io = (u8 *)run + run->io.data_offset;
			val = *io;
			*io = IO_BYTE;
		} else {
			TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
			break;
		}
	}

	return op == GUEST_OUTS ? val :
	       *(u64 *)addr_gva2hva(self->vm, (gva_t)&guest_result);
}

typedef void (*poke_fn)(access_data *self);

static void try(access_data *self, poke_fn poke, u8 filler, bool can_write)
{
	u8 before[PAGE_SIZE];

	memset(before, filler, PAGE_SIZE);
	if (self->shared)
		memcpy(self->page, before, PAGE_SIZE);
	poke(self);
	uaddr_expect_untouched(&self->uaddr);
	if (self->shared)
		TEST_ASSERT_EQ(!!memcmp(self->page, before, PAGE_SIZE), can_write);
}

/*
 * Have KVM write to memory that was filled with @filler.  If it looks for the page
 * where that's mapped, it must not write if it doesn't find it there.
 */
static void check(access_data *self, const access_variant *variant, poke_fn poke,
		  u8 filler, bool needs_uaddr)
{
	bool can_write = !needs_uaddr || variant->uaddr == UADDR_FILE;
	u8 before[PAGE_SIZE];

	try(self, poke, filler, can_write);
	try(self, poke, filler, can_write);
	if (variant->tracking != GMEM_TRACKS)
		return;

	memcpy(before, self->page, PAGE_SIZE);
	convert_page(self->fd, ACCESS_PAGE - MEM_BASE, ATTR_PRIVATE);
	self->shared = false;
	try(self, poke, filler, false);
	convert_page(self->fd, ACCESS_PAGE - MEM_BASE, ATTR_SHARED);
	self->shared = true;
	TEST_ASSERT(!memcmp(self->page, before, PAGE_SIZE), "KVM wrote to private memory");
	try(self, poke, filler, can_write);
}

static void poke_clock(access_data *self)
{
	struct kvm_clock_data data = { .clock = NSEC_PER_SEC };

	vm_ioctl(self->vm, KVM_SET_CLOCK, &data);
	guest_do(self, GUEST_NOP);
}

/* It's fine to fail, as KVM may if it doesn't get at the memory. */
static void poke_msr(access_data *self)
{
	_vcpu_set_msr(self->vcpu, self->msr, 0);
	_vcpu_set_msr(self->vcpu, self->msr, self->msr_val);
	guest_do(self, GUEST_NOP);
}

/* KVM writes to memory when the MSR is set, or when the guest runs after that. */
static void check_msr(access_data *self, const access_variant *variant, u32 msr,
		      u64 val, u8 filler)
{
	self->msr = msr;
	self->msr_val = val;
	check(self, variant, poke_msr, filler, false);
}

TEST_F(access, wall_clock)
{
	check_msr(self, variant, MSR_KVM_WALL_CLOCK_NEW, ACCESS_GPA, 0);
}

TEST_F(access, steal_time)
{
	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(return, "Needs CONFIG_SCHED_INFO");

	check_msr(self, variant, MSR_KVM_STEAL_TIME, ACCESS_GPA | KVM_MSR_ENABLED, 0);

	/* The memslot goes away, and comes back. */
	set_slot(self, 0, 0);
	guest_do(self, GUEST_NOP);
	uaddr_expect_untouched(&self->uaddr);
	set_slot(self, KVM_MEM_GUEST_MEMFD, MEM_SIZE);
	try(self, poke_clock, 0, true);
}

/* Turning it on wakes up whoever waits, with a write. */
TEST_F(access, async_pf)
{
	vcpu_set_msr(self->vcpu, MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
	check_msr(self, variant, MSR_KVM_ASYNC_PF_EN, ACCESS_GPA | KVM_ASYNC_PF_ENABLED |
		  KVM_ASYNC_PF_DELIVERY_AS_INT, 0);
}

TEST_F(access, hyperv)
{
	if (!kvm_has_cap(KVM_CAP_HYPERV))
		SKIP(return, "Needs CONFIG_KVM_HYPERV");

	vcpu_set_msr(self->vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
	check_msr(self, variant, HV_X64_MSR_HYPERCALL, ACCESS_PAGE | KVM_MSR_ENABLED, 0);
	check_msr(self, variant, HV_X64_MSR_VP_ASSIST_PAGE, ACCESS_PAGE | KVM_MSR_ENABLED,
		  0xff);
}

/* KVM takes the page from where it's mapped, to be told when it's unmapped. */
TEST_F(access, clock)
{
	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, ACCESS_GPA | KVM_MSR_ENABLED);
	check(self, variant, poke_clock, 0, true);
}

/* The page that KVM knows was another memslot's, with the same userspace_addr. */
TEST_F(access, clock_slot_replaced)
{
	if (variant->uaddr == UADDR_NOTHING)
		map_at(self->uaddr.mem, MEM_SIZE, -1);
	set_slot(self, 0, 0);
	set_slot(self, 0, MEM_SIZE);
	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, ACCESS_GPA | KVM_MSR_ENABLED);
	poke_clock(self);
	TEST_ASSERT(*(u32 *)(self->uaddr.mem + ACCESS_GPA - MEM_BASE),
		    "There is no clock");
	memset(self->uaddr.mem, 0, MEM_SIZE);
	fill(self->uaddr.mem, MEM_SIZE, ALIEN_TAG);
	if (variant->uaddr == UADDR_NOTHING)
		kvm_munmap(self->uaddr.mem, MEM_SIZE);

	set_slot(self, 0, 0);
	set_slot(self, KVM_MEM_GUEST_MEMFD, MEM_SIZE);
	check(self, variant, poke_clock, 0, true);
}

TEST_F(access, pv_eoi)
{
	vcpu_set_msr(self->vcpu, MSR_KVM_PV_EOI_EN, ACCESS_GPA | KVM_MSR_ENABLED);
	if (self->shared)
		memset(self->page, 0, PAGE_SIZE);
	TEST_ASSERT_EQ(guest_do(self, GUEST_EOI), self->shared);
	uaddr_expect_untouched(&self->uaddr);
}

static void poke_emulator(access_data *self)
{
	guest_do(self, GUEST_INS);
	TEST_ASSERT_EQ(guest_do(self, GUEST_OUTS), self->shared ? IO_BYTE : MEM_BYTE);
}

TEST_F(access, emulator)
{
	check(self, variant, poke_emulator, 0, false);
}

static void poke_emulated_cmpxchg(access_data *self)
{
	u8 *alien = self->uaddr.mem + ACCESS_GPA - MEM_BASE;

	self->page[ACCESS_OFFSET] = MEM_BYTE;
	/* Have the value match that isn't to be exchanged. */
	if (self->uaddr.is_alien)
		*alien = MEM_BYTE;
	TEST_ASSERT_EQ(guest_do(self, GUEST_CMPXCHG), MEM_BYTE);
	TEST_ASSERT_EQ(self->page[ACCESS_OFFSET], IO_BYTE);
	if (self->uaddr.is_alien) {
		TEST_ASSERT_EQ(*alien, MEM_BYTE);
		*alien = 0;
	}
}

TEST_F(access, emulated_cmpxchg)
{
	if (!is_forced_emulation_enabled)
		SKIP(return, "Needs kvm.force_emulation_prefix=1");
	if (variant->tracking == VM_TRACKS)
		SKIP(return, "Needs memory that KVM gets at");

	try(self, poke_emulated_cmpxchg, 0, true);
}

/* Tell KVM anew each time, as it gives up on memory that it doesn't get at. */
static void poke_xen(access_data *self)
{
	struct kvm_xen_hvm_attr vm_attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = ACCESS_PAGE / PAGE_SIZE,
	};
	struct kvm_xen_vcpu_attr vcpu_attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
		.u.gpa = ACCESS_GPA,
	};

	__vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &vm_attr);
	__vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &vcpu_attr);
	guest_do(self, GUEST_NOP);
}

TEST_F(access, xen)
{
	struct kvm_xen_hvm_config config = {};

	if (!(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE))
		SKIP(return, "Needs CONFIG_KVM_XEN");

	vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config);
	check(self, variant, poke_xen, 0, true);
}

int main(int argc, char *argv[])
{
	require_gmem_attributes();

	return test_harness_run(argc, argv);
}
