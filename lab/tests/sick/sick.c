// SPDX-License-Identifier: GPL-2.0
/*
 * Kernel code with one of the faults that do not stop a kernel, so that
 * lab/test can see the lab notice. Loading it commits the fault and fails.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *fault = "none";
module_param(fault, charp, 0);

static DEFINE_MUTEX(a);
static DEFINE_MUTEX(b);
static DEFINE_SPINLOCK(lock);
static int __rcu *shared;

static void lock_in_both_orders(void)
{
	mutex_lock(&a);
	mutex_lock(&b);
	mutex_unlock(&b);
	mutex_unlock(&a);

	mutex_lock(&b);
	mutex_lock(&a);
	mutex_unlock(&a);
	mutex_unlock(&b);
}

/* To sleep in earnest would be fatal. */
static void sleep_under_spinlock(void)
{
	spin_lock(&lock);
	might_sleep();
	spin_unlock(&lock);
}

/* The last few go unnoticed, the allocator's sheaves still have their addresses. */
static void leak(void)
{
	int i;

	for (i = 0; i < 1000; i++)
		WARN_ON(!kmalloc(100, GFP_KERNEL));
}

static int __init sick_init(void)
{
	if (!strcmp(fault, "lockdep"))
		lock_in_both_orders();
	else if (!strcmp(fault, "leak"))
		leak();
	else if (!strcmp(fault, "atomic"))
		sleep_under_spinlock();
	else if (!strcmp(fault, "rcu"))
		pr_info("unprotected: %p\n", rcu_dereference(shared));
	return -ENODEV;
}
module_init(sick_init);

MODULE_DESCRIPTION("Faults for the lab to notice");
MODULE_LICENSE("GPL");
