# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the scripts that handle the series have in common; to be sourced after
# lib.sh.
#
# The tree remembers what it was last given or has last given away:
#
#	refs/gmem/exported	the commit that patches/ and the whole files were
#	refs/gmem/pending	the commit that the tree was being moved to
#	gmem-inputs		the base commit, and a hash of patches/ and the
#				whole files

need_packages "to handle the series" git

# Whoever runs this, and however they like their git.
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars) GIT_DIFF_OPTS
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME='guest_memfd in-place conversion'
export GIT_AUTHOR_EMAIL=guest_memfd@localhost
export GIT_AUTHOR_DATE='1767225600 +0000'
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME
export GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
export GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE

tree=$BUILD/tree
patches=$TOP/patches

g() {
	git -C "$tree" -c core.quotePath=false "$@"
}

# The kernel's directories; what is in them here is a whole file. Its scripts/
# is not among them, for that means something else here.
kernel_dirs=" Documentation arch block certs crypto drivers fs include init io_uring \
ipc kernel lib mm net rust samples security sound tools usr virt "

# is_whole PATH: would the repository keep that new file of the kernel's whole?
is_whole() {
	[[ $kernel_dirs == *" ${1%%/*} "* && $1 == */* ]]
}

whole_files() {
	local d dirs=()

	for d in $kernel_dirs; do
		[ ! -d "$TOP/$d" ] || dirs+=("$d")
	done
	[ ${#dirs[@]} = 0 ] || (
		cd "$TOP" && find "${dirs[@]}" \( -type f -o -type l \) \
			! -name '*~' ! -name '.*.sw?' ! -name '*.orig' \
			! -name '*.rej' ! -name '*.o' | sort
	)
}

series() {
	sed 's/[[:space:]]*\(#.*\)\?$//; /^$/d' "$patches/series"
}

# A hash of all that scripts/tree makes commits from
inputs() {
	(
		cd "$TOP" || exit
		for f in patches/series patches/*.patch $(whole_files); do
			[ ! -f "$f" ] || echo "$(stat -c %A "$f" | cut -c 4) $f"
		done >"$BUILD/inputs"
		cat "$BUILD/inputs"
		cut -c 3- "$BUILD/inputs" | git hash-object --no-filters --stdin-paths
	) | sha256sum | cut -d ' ' -f 1
}

# The name that git format-patch would give
patch_name() {	# patch_name NUMBER COMMIT
	printf '%04d-%.52s.patch\n' "$1" "$(g log -1 --format=%f "$2")"
}

# same COMMIT COMMIT: are these the same series, whoever committed it and when?
same() {
	[ "$1" = "$2" ] || cmp -s <(g log --format='%T %B' "base..$1") \
				  <(g log --format='%T %B' "base..$2")
}

# What the tree has besides commits, in a few words; nothing if nothing.
uncommitted() {
	local f dir exclude

	dir=$(g rev-parse --absolute-git-dir)
	for f in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD; do
		[ ! -e "$dir/$f" ] || {
			f=${f%%[-_]*}
			echo "an unfinished ${f,,}"
			return
		}
	done
	g update-index -q --refresh >/dev/null || :
	f=$(g diff-index --name-only HEAD | sed -n 1p)
	[ -z "$f" ] || {
		echo "uncommitted changes in $f"
		return
	}
	# Debian's .gitignore ignores the whole tree. Only patterns of the command
	# line win over it, so that all others of that file have to be there, too.
	mapfile -t exclude < <(
		echo '!/*'
		grep -hvxE '/\*|#.*|' "$tree/.gitignore" "$dir/info/exclude"
	)
	f=$(g ls-files -o --exclude-per-directory=.gitignore \
		"${exclude[@]/#/--exclude=}" | sed -n 1p)
	[ -z "$f" ] || echo "a new file, $f, in no commit"
}

lock_tree() {
	mkdir -p "$BUILD"
	exec 8>"$BUILD/lock"
	flock -n 8 || {
		say "waiting for another command in $tree"
		flock 8
	}
}
