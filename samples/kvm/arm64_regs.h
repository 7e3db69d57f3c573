/* SPDX-License-Identifier: GPL-2.0 */
/* The registers of vcpu_fd, for the samples that run a guest on arm64. */
#define CORE_REG(name)							\
	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |		\
	 KVM_REG_ARM_CORE_REG(name))

static void set_reg(__u64 id, __u64 value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (unsigned long)&value };

	if (ioctl(vcpu_fd, KVM_SET_ONE_REG, &reg))
		err(1, "KVM_SET_ONE_REG");
}

static __u64 get_reg(__u64 id)
{
	__u64 value;
	struct kvm_one_reg reg = { .id = id, .addr = (unsigned long)&value };

	if (ioctl(vcpu_fd, KVM_GET_ONE_REG, &reg))
		err(1, "KVM_GET_ONE_REG");
	return value;
}
