/* SPDX-License-Identifier: GPL-2.0 */
#ifndef cond_resched
#define cond_resched()	do { } while (0)
#endif
