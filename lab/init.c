// SPDX-License-Identifier: GPL-2.0
/*
 * Process 1 of the lab's virtual machines.
 *
 * Runs what lab/run put under /lab: one program (/lab/argv), a plan of many
 * (/lab/plan), or a shell (/lab/shell). Output and verdict leave the machine
 * on virtio ports that nothing else has open, so that no console noise, of
 * the kernel's or of a program's making, can pass for a verdict. What goes
 * over the verdict port is one line per event:
 *
 *	up				the machine has booted
 *	start NAME			a program of the plan is starting
 *	result NAME STATUS SECONDS	it ended: PASS, FAIL, SKIP, HANG or OOPS
 *	exit N | signal N | hang | sick	the verdict, always the last line
 *
 * A kernel that panics says nothing more; lab/run knows what to make of that.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define KSFT_SKIP	4
#define KMEMLEAK	"/sys/kernel/debug/kmemleak"
#define GRACE		30	/* seconds that a killed program has to go away */
#define REPORT_LINES	150	/* of the kernel's log, when it has complained */

/* Taints that mean a kernel bug: bad page, died, warned, soft lockup. */
#define SICK_TAINT	(1UL << 5 | 1UL << 7 | 1UL << 9 | 1UL << 14)

static int port_out, port_err, port_verdict;
static int kmsg;

/* What is known to be wrong with the kernel, and which record said so. */
static unsigned long taint;
static bool lockdep_off;
static unsigned long long last_seq, sick_seq;
static char sick[256];

static void write_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0) {
			buf += n;
			len -= n;
		}
	}
}

static void __attribute__((format(printf, 2, 3)))
say(int fd, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (len >= (int)sizeof(line))
		len = sizeof(line) - 1;
	write_all(fd, line, len);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return -1;
	while (len < size - 1 && (n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	buf[len] = 0;
	return len;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -1 : 0;
}

static void __attribute__((noreturn)) leave(void)
{
	/* QEMU runs with -no-reboot. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/*
 * The kernel's health
 */

static bool complains(const char *msg)
{
	static const char * const bad[] = {
		"BUG: ", "BUG ", "[ BUG: ", "kernel BUG", "WARNING: ", "Oops",
		"INFO: possible ", "INFO: task ", "INFO: trying to register",
		"INFO: rcu", "rcu: INFO: ", "watchdog: BUG", "UBSAN: ",
		"Internal error: ",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		if (!strncmp(msg, bad[i], strlen(bad[i])))
			return true;
	return false;
}

static void fall_sick(unsigned long long seq, const char *what)
{
	if (*sick)
		return;
	snprintf(sick, sizeof(sick), "%s", what);
	sick_seq = seq;
}

/*
 * Read one record of the kernel's log and return its text, or NULL if there
 * is none. Only the kernel writes records of facility 0: what programs write
 * to /dev/kmsg is filed under LOG_USER.
 */
static char *next_record(int fd, char *buf, size_t size,
			 unsigned long long *seq, bool *kernel)
{
	unsigned int prio;
	ssize_t n;
	char *msg;

	do {
		n = read(fd, buf, size - 1);
	} while (n < 0 && (errno == EPIPE || errno == EINTR));
	if (n < 0)
		return NULL;
	buf[n] = 0;
	msg = strchr(buf, ';');
	if (!msg || sscanf(buf, "%u,%llu", &prio, seq) != 2)
		return "";
	msg++;
	msg[strcspn(msg, "\n")] = 0;
	*kernel = !(prio >> 3);
	return msg;
}

static void watch_log(void)
{
	unsigned long long seq = 0;
	bool kernel = false;
	char buf[8192], *msg;

	while ((msg = next_record(kmsg, buf, sizeof(buf), &seq, &kernel))) {
		if (kernel && complains(msg))
			fall_sick(seq, msg);
		last_seq = seq;
	}
}

/* Is anything wrong with the kernel that was not wrong before? */
static bool check_kernel(unsigned long long since)
{
	char buf[8192], *p;
	unsigned long now_taint = 0;

	watch_log();
	if (read_file("/proc/sys/kernel/tainted", buf, sizeof(buf)) > 0)
		now_taint = strtoul(buf, NULL, 10);
	if (now_taint & ~taint & SICK_TAINT)
		fall_sick(since, "it has become tainted");
	taint |= now_taint;

	if (!lockdep_off &&
	    read_file("/proc/lockdep_stats", buf, sizeof(buf)) > 0) {
		p = strstr(buf, " debug_locks:");
		if (p && !strtoul(p + strlen(" debug_locks:"), NULL, 10)) {
			fall_sick(since, "lockdep has turned itself off");
			lockdep_off = true;
		}
	}
	sick[strcspn(sick, "\n")] = 0;
	return *sick;
}

static void report_sickness(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	unsigned long long seq = 0;
	bool kernel = false;
	int lines = 0;
	char buf[8192], *msg;

	if (!*sick)
		return;
	say(port_err, "lab: the kernel complains: %s\n", sick);
	while ((msg = next_record(fd, buf, sizeof(buf), &seq, &kernel)))
		if (kernel && seq >= sick_seq && lines++ < REPORT_LINES)
			say(port_err, "  %s\n", msg);
	close(fd);
	*sick = 0;
}

/*
 * kmemleak reports what is five seconds old and was unreferenced, with
 * unchanged contents, in two scans.
 */
static bool leaks(void)
{
	const char *path = KMEMLEAK;
	static char report[65536];

	if (access(path, F_OK))
		return false;
	sleep(6);
	if (write_file(path, "scan") || write_file(path, "scan")) {
		say(port_err, "lab: kmemleak has turned itself off\n");
		return true;
	}
	if (read_file(path, report, sizeof(report)) <= 0)
		return false;
	say(port_err, "lab: the kernel leaks memory:\n");
	write_all(port_err, report, strlen(report));
	return true;
}

/*
 * Running programs
 */

struct run {
	char **argv;
	double timeout;
	double seconds;
	int status;
	bool hung;	/* did not end in time */
	bool stuck;	/* cannot even be killed */
};

/* Pass on what is in the pipe; false at its end. */
static bool relay(int from, int to)
{
	static char buf[65536];
	ssize_t n;

	while ((n = read(from, buf, sizeof(buf))) > 0)
		write_all(to, buf, n);
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void show(const char *pid, const char *tid, const char *what)
{
	char path[300], buf[4096];

	snprintf(path, sizeof(path), "/proc/%s/task/%s/%s", pid, tid, what);
	if (read_file(path, buf, sizeof(buf)) > 0) {
		say(port_err, "lab: %s/%s %s: ", pid, tid, what);
		write_all(port_err, buf, strlen(buf));
		if (buf[strlen(buf) - 1] != '\n')
			write_all(port_err, "\n", 1);
	}
}

/* Where does every process hang? */
static void show_processes(void)
{
	struct dirent *p, *t;
	char path[300], buf[16];
	DIR *proc, *tasks;

	proc = opendir("/proc");
	while (proc && (p = readdir(proc))) {
		if (*p->d_name < '1' || *p->d_name > '9' ||
		    !strcmp(p->d_name, "1"))
			continue;
		/* Kernel threads have no command line. */
		snprintf(path, sizeof(path), "/proc/%s/cmdline", p->d_name);
		if (read_file(path, buf, sizeof(buf)) <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task", p->d_name);
		tasks = opendir(path);
		while (tasks && (t = readdir(tasks))) {
			if (*t->d_name == '.')
				continue;
			show(p->d_name, t->d_name, "comm");
			show(p->d_name, t->d_name, "wchan");
			show(p->d_name, t->d_name, "syscall");
			show(p->d_name, t->d_name, "stack");
		}
		if (tasks)
			closedir(tasks);
	}
	if (proc)
		closedir(proc);
	/* And where is every CPU? The answer is on the console. */
	write_file("/proc/sysrq-trigger", "l");
	write_file("/proc/sysrq-trigger", "w");
}

static pid_t spawn(char **argv, const int out[2], const int err[2])
{
	pid_t pid = fork();

	if (pid)
		return pid;
	setsid();
	dup2(out[1], 1);
	dup2(err[1], 2);
	if (chdir("/root"))
		_exit(127);
	execvp(argv[0], argv);
	dprintf(2, "lab: cannot run %s: %m\n", argv[0]);
	_exit(127);
}

static void run(struct run *r)
{
	struct pollfd fds[4] = { };
	double start = now(), deadline = start + r->timeout;
	int out[2], err[2], status;
	bool alive = true;
	pid_t pid, p;

	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		return;
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	pid = spawn(r->argv, out, err);
	close(out[1]);
	close(err[1]);

	fds[0].fd = out[0];
	fds[1].fd = err[0];
	fds[2].fd = kmsg;
	fds[3].fd = syscall(SYS_pidfd_open, pid, 0);
	for (int i = 0; i < 4; i++)
		fds[i].events = POLLIN;

	while (alive && now() < deadline) {
		poll(fds, 4, (deadline - now()) * 1000 + 1);
		if (fds[0].revents && !relay(out[0], port_out))
			fds[0].fd = -1;
		if (fds[1].revents && !relay(err[0], port_err))
			fds[1].fd = -1;
		if (fds[2].revents)
			watch_log();
		if (fds[3].revents)
			alive = false;
	}
	r->seconds = now() - start;
	r->hung = alive;
	if (r->hung)
		show_processes();

	/* Whatever it left behind goes too, before its pipes are drained. */
	deadline = now() + GRACE;
	do {
		kill(-1, SIGKILL);
		while ((p = waitpid(-1, &status, WNOHANG)) > 0)
			if (p == pid)
				r->status = status;
		relay(out[0], port_out);
		relay(err[0], port_err);
		if (!p)
			usleep(10000);
	} while (!p && now() < deadline);
	r->stuck = !p;
	if (r->stuck)
		show_processes();
	relay(out[0], port_out);
	relay(err[0], port_err);

	close(fds[3].fd);
	close(out[0]);
	close(err[0]);
}

static void run_one(char *args, size_t len, double timeout)
{
	char *argv[256], *end = args + len;
	struct run r = { .argv = argv, .timeout = timeout };
	unsigned long long since = last_seq;
	unsigned int n = 0;

	for (char *p = args; p < end && n < 255; p += strlen(p) + 1)
		argv[n++] = p;
	argv[n] = NULL;

	run(&r);
	if (check_kernel(since)) {
		report_sickness();
		say(port_verdict, "sick\n");
	} else if (r.hung || r.stuck) {
		say(port_verdict, "hang\n");
	} else if (leaks() || check_kernel(since)) {
		report_sickness();
		say(port_verdict, "sick\n");
	} else if (WIFSIGNALED(r.status)) {
		say(port_verdict, "signal %d\n", WTERMSIG(r.status));
	} else {
		say(port_verdict, "exit %d\n", WEXITSTATUS(r.status));
	}
}

static const char *judge(const struct run *r, unsigned long long since)
{
	if (check_kernel(since)) {
		report_sickness();
		return "OOPS";
	}
	if (r->hung || r->stuck)
		return "HANG";
	if (WIFSIGNALED(r->status)) {
		say(port_err, "lab: killed by signal %d\n", WTERMSIG(r->status));
		return "FAIL";
	}
	switch (WEXITSTATUS(r->status)) {
	case 0:
		return "PASS";
	case KSFT_SKIP:
		return "SKIP";
	default:
		say(port_err, "lab: exit status %d\n", WEXITSTATUS(r->status));
		return "FAIL";
	}
}

/* Keep each CPU busy, for everything else to be preempted where that hurts. */
static void be_busy(void)
{
	long cpu, nr = sysconf(_SC_NPROCESSORS_ONLN);

	for (cpu = 0; cpu < nr; cpu++) {
		if (fork())
			continue;

		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof(set), &set);
		for (;;)
			;
	}
}

/* Lines of a plan: name, seconds it may take, program, arguments. */
static void run_plan(char *plan)
{
	char *line, *save, *words[64];
	bool good = true;

	for (line = strtok_r(plan, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		struct run r = { .argv = words + 2 };
		unsigned long long since;
		const char *status;
		int n = 0;

		for (char *w = strtok(line, " \t"); w && n < 63;
		     w = strtok(NULL, " \t"))
			words[n++] = w;
		words[n] = NULL;
		if (n < 3 || *words[0] == '#')
			continue;
		r.timeout = atoi(words[1]);

		say(port_verdict, "start %s\n", words[0]);
		say(port_out, "=== %s\n", words[0]);
		since = last_seq;
		run(&r);
		status = judge(&r, since);
		say(port_out, "--- %s %s %.1f\n", words[0], status, r.seconds);
		say(port_verdict, "result %s %s %.1f\n", words[0], status,
		    r.seconds);
		if (strcmp(status, "PASS") && strcmp(status, "SKIP"))
			good = false;
		if (r.stuck) {
			say(port_verdict, "hang\n");
			return;
		}
	}
	if (!access(KMEMLEAK, F_OK)) {
		bool bad = leaks() || check_kernel(last_seq);

		report_sickness();
		good &= !bad;
		say(port_verdict, "result kmemleak %s 0\n",
		    bad ? "FAIL" : "PASS");
	}
	say(port_verdict, "exit %d\n", !good);
}

static void run_shell(void)
{
	char *argv[] = { "/bin/sh", "-l", NULL };
	pid_t pid = fork();

	if (!pid) {
		char tty[80] = "/dev/";
		int fd;

		if (read_file("/sys/class/tty/console/active", tty + 5,
			      sizeof(tty) - 5) > 0)
			tty[strcspn(tty, " \n")] = 0;
		setsid();
		fd = open(tty, O_RDWR);
		ioctl(fd, TIOCSCTTY, 0);
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
		if (!chdir("/root"))
			execv(argv[0], argv);
		_exit(127);
	}
	while (wait(NULL) != pid)
		;
	say(port_verdict, "exit 0\n");
}

/*
 * Setting up
 */

static void mount_at(const char *type, const char *dir)
{
	mkdir(dir, 0755);
	if (mount(type, dir, type, 0, NULL) && errno != ENODEV &&
	    errno != EBUSY && errno != ENOENT)
		fprintf(stderr, "lab: cannot mount %s on %s: %m\n", type, dir);
}

static void mount_all(void)
{
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("devtmpfs", "/dev");
	mount_at("devpts", "/dev/pts");
	mount_at("tmpfs", "/dev/shm");
	mount_at("tmpfs", "/tmp");
	mount_at("debugfs", "/sys/kernel/debug");
	mount_at("tracefs", "/sys/kernel/tracing");
	mount_at("cgroup2", "/sys/fs/cgroup");
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir("/root", 0700);
	if (symlink("/proc/self/fd", "/dev/fd") ||
	    symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") ||
	    symlink("/proc/self/fd/2", "/dev/stderr"))
		return;
}

/* Ports get their names a moment after they appear. */
static int open_port(const char *name)
{
	const char *dir = "/sys/class/virtio-ports";
	char path[300], buf[64];
	struct dirent *e;
	int fd = -1;
	DIR *d;

	for (int tries = 0; fd < 0 && tries < 1000; tries++) {
		if (tries)
			usleep(10000);
		d = opendir(dir);
		while (d && fd < 0 && (e = readdir(d))) {
			snprintf(path, sizeof(path), "%s/%s/name", dir,
				 e->d_name);
			if (read_file(path, buf, sizeof(buf)) <= 0)
				continue;
			buf[strcspn(buf, "\n")] = 0;
			if (strcmp(buf, name))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", e->d_name);
			fd = open(path, O_WRONLY | O_CLOEXEC);
		}
		if (d)
			closedir(d);
	}
	if (fd < 0) {
		fprintf(stderr, "lab: no virtio port %s\n", name);
		leave();
	}
	return fd;
}

static double option(const char *path, double otherwise)
{
	char buf[32];

	return read_file(path, buf, sizeof(buf)) > 0 ? atof(buf) : otherwise;
}

int main(void)
{
	struct sched_param fifo = { .sched_priority = 1 };
	struct rlimit files = { 65536, 65536 };
	static char job[1 << 20];
	ssize_t len;
	int null;

	mount_all();
	port_out = open_port("lab.out");
	port_err = open_port("lab.err");
	port_verdict = open_port("lab.verdict");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	null = open("/dev/null", O_RDONLY);
	dup2(null, 0);
	close(null);

	setenv("PATH", "/root:/bin:/sbin:/usr/bin:/usr/sbin", 1);
	setenv("HOME", "/root", 1);
	setrlimit(RLIMIT_NOFILE, &files);
	write_file("/proc/sys/debug/exception-trace", "0");
	/* Be there first: the last words before a panic are worth having. */
	sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo);

	if (read_file("/proc/cmdline", job, sizeof(job)) > 0 && strstr(job, "lab.busy"))
		be_busy();

	say(port_verdict, "up\n");
	if (check_kernel(0)) {
		report_sickness();
		say(port_verdict, "sick\n");
	} else if ((len = read_file("/lab/argv", job, sizeof(job))) > 0) {
		run_one(job, len, option("/lab/timeout", 600));
	} else if (read_file("/lab/plan", job, sizeof(job)) > 0) {
		run_plan(job);
	} else {
		run_shell();
	}
	leave();
}
