# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the scripts of this repository have in common; to be sourced by them.
#
#	TOP	the repository
#	BUILD	where build output goes
#	CACHE	what is kept for the next clone
#	ARCH	the architecture to work for, by the kernel's name for it

# shellcheck disable=SC2034	# used by those who source this
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$(realpath -m "${BUILD:-$TOP/build}")
CACHE=${XDG_CACHE_HOME:-~/.cache}/guest-memfd
export LC_ALL=C
# One clock for a command and all that it calls.
export GMEM_START=${GMEM_START:-$EPOCHSECONDS}

elapsed() {
	local s=$((EPOCHSECONDS - GMEM_START))

	printf '%d:%02d' $((s / 60)) $((s % 60))
}

say() {
	printf '[%s] %s\n' "$(elapsed)" "$*" >&2
}

warn() {
	printf 'warning: %s\n' "$*" >&2
}

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# set_arch ARCH: work for this architecture. Also sets
#
#	MACHINE		its name in uname -m
#	SUFFIX		what sets it apart in the names of directories in BUILD
#	IMAGE		the kernel that QEMU boots, in the output of its build
#	CROSS_COMPILE	the prefix of the compiler, which the kernel's makefiles
#			know by that name; empty on such a machine
#	COMPILER	the packages that the compiler is in
set_arch() {
	CROSS_COMPILE="" SUFFIX="" COMPILER=(gcc libc6-dev)
	case $1 in
	x86_64|x86)
		ARCH=x86_64 MACHINE=x86_64 IMAGE=vmlinux ;;
	arm64|aarch64)
		ARCH=arm64 MACHINE=aarch64 IMAGE=arch/arm64/boot/Image SUFFIX=-arm64
		[ "$(uname -m)" = aarch64 ] || {
			CROSS_COMPILE=aarch64-linux-gnu-
			COMPILER+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
		} ;;
	*)	die "there is no architecture $1 here: say x86_64 or arm64" ;;
	esac
	export ARCH CROSS_COMPILE
}
set_arch "${ARCH:-x86_64}"

# long WHAT HOW_FAR COMMAND...: run a command that takes its time, saying now
# and then how long it has been running and what the command HOW_FAR prints.
long() {
	local what=$1 how_far=$2 ticker status=0

	shift 2
	say "$what"
	(
		exec 8>&- 9>&-	# no lock is held for this
		every=15
		[ ! -t 2 ] || every=1
		for ((n = 1;; n++)); do
			sleep 1
			kill -0 $$ 2>/dev/null || exit
			[ $((n % every)) = 0 ] || continue
			[ ! -t 2 ] || printf '\r\033[K' >&2
			printf '[%s] %s: %.40s' "$(elapsed)" "$what" "$($how_far)" >&2
			[ -t 2 ] || echo >&2
		done
	) >/dev/null &
	ticker=$!
	"$@" || status=$?
	# Whoever ignores other signals has passed that on.
	kill -KILL $ticker 2>/dev/null || :
	wait $ticker 2>/dev/null || :
	[ ! -t 2 ] || printf '\r\033[K' >&2
	return $status
}

# need_space GIB DIRECTORY
need_space() {
	local dir=$2 free

	while [ ! -d "$dir" ]; do
		dir=$(dirname "$dir")
	done
	free=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$1" ] ||
		die "$2 needs $1 GiB and has $free: make room and try again"
}

# static_program FILE SOURCE [OPTION...]: compile it with the patched kernel's
# headers, see scripts/headers
static_program() {
	"${CROSS_COMPILE}gcc" -static -O2 -Wall -Werror \
		-isystem "$BUILD/headers$SUFFIX/include" "${@:3}" -o "$1" "$2"
}

# static_sample FILE TREE: compile the sample of that name
static_sample() {
	static_program "$1" "$2/samples/kvm/${1##*/}.c" -Wextra
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif [ -t 0 ]; then
		sudo "$@"
	else
		sudo -n "$@"
	fi
}

apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

apt_install() {
	{
		if [ -z "$(apt-cache show --no-all-versions "$@" 2>&1 >/dev/null)" ] &&
		   apt_get install --no-install-recommends "$@"; then
			return
		fi
		apt_get update && apt_get install --no-install-recommends "$@"
	} >"$BUILD/apt.log" 2>&1
}

apt_how_far() {
	tail -n 1 "$BUILD/apt.log"
}

# need_packages WHY PACKAGE...: install those that are missing
need_packages() {
	local why=$1 have missing=() p

	shift
	command -v dpkg-query >/dev/null || return 0
	have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null) || :
	for p; do
		[[ $'\n'$have$'\n' == *$'\n'"installed $p"$'\n'* ]] || missing+=("$p")
	done
	[ ${#missing[@]} != 0 ] || return 0
	[ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
		die "${missing[*]} missing, needed $why: as root, run apt-get install ${missing[*]}"
	mkdir -p "$BUILD"
	long "installing ${missing[*]}, $why" apt_how_far apt_install "${missing[@]}" ||
		die "cannot install ${missing[*]}, $why: $(grep -m1 -E '^(E:|sudo:)' \
			"$BUILD/apt.log" || echo "see $BUILD/apt.log")"
}
