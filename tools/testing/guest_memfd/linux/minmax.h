/* SPDX-License-Identifier: GPL-2.0 */
/* In user space, min() and friends are a part of: */
#include <linux/kernel.h>
