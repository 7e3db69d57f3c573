# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Packages that the apt of this machine does not have: of another suite, or of
# another architecture. To be sourced after lib.sh.

# The mirror that this machine has Debian from
mirror() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" { print $2; exit }'
}

# private_apt DIRECTORY SUITE OTHERWISE [LINE...]: a configuration of apt, with
# these lines in it, and its lists of SUITE. All of it is in DIRECTORY, as is what
# apt says (log), and -c DIRECTORY/apt.conf makes apt use it. OTHERWISE is what a
# person can do where there is no mirror.
private_apt() {
	local dir=$1 suite=$2 otherwise=$3 uri keyring k

	shift 3
	need_packages "to check signatures" debian-archive-keyring
	for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		[ ! -e "$k" ] || keyring=$k
	done
	uri=${DEBIAN_MIRROR:-$(mirror)}
	[ -n "$uri" ] || {
		say "updating apt's lists, to find a mirror"
		apt_get update >>"$dir/log" 2>&1 || :
		uri=$(mirror)
	}
	[ -n "$uri" ] ||
		die "apt does not know any mirror of Debian: say DEBIAN_MIRROR=URI or $otherwise"

	mkdir -p "$dir"/{state,lists/partial,cache/archives/partial}
	: >"$dir/status"
	echo "deb [signed-by=$keyring target=Packages] $uri $suite main" \
		>"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
	#clear APT::Update;
	#clear APT::Default-Release;
	APT::Sandbox::User "root";
	Acquire::Retries "3";
	Dir::State "$dir/state";
	Dir::State::lists "$dir/lists";
	Dir::State::status "$dir/status";
	Dir::Cache "$dir/cache";
	Dir::Etc::SourceList "$dir/sources.list";
	Dir::Etc::SourceParts "/dev/null";
	Dir::Etc::Preferences "/dev/null";
	Dir::Etc::PreferencesParts "/dev/null";
	END
	printf '%s\n' "$@" >>"$dir/apt.conf"
	say "updating the list of $suite"
	apt-get -q -c "$dir/apt.conf" update >>"$dir/log" 2>&1 || :
	! grep -q NO_PUBKEY "$dir/log" ||
		die "the Debian keyring of this machine is too old for $suite: upgrade debian-archive-keyring"
}

# program_of PACKAGE SUITE MEMBER FILE OTHERWISE [LINE...]: put the program that the
# package has as MEMBER, a pattern, into FILE; see private_apt for the rest
program_of() {
	local package=$1 suite=$2 member=$3 file=$4 otherwise=$5

	shift 5
	command -v apt-get >/dev/null || die "cannot fetch $package without apt: $otherwise"
	mkdir -p "${file%/*}"
	work=$(mktemp -d "$file.XXXXXX")	# for the trap to know it
	trap 'rm -rf "$work"' EXIT
	private_apt "$work" "$suite" "$otherwise" "$@"
	say "fetching $package of $suite"
	(cd "$work" && apt-get -q -c apt.conf download "$package") >>"$work/log" 2>&1 ||
		die "cannot fetch $package: $(grep -m 1 '^E:' "$work/log" || echo 'is the network up?')"
	dpkg-deb --fsys-tarfile "$work"/*.deb |
		tar -xO --wildcards "$member" >"$work/program"
	chmod +x "$work/program"
	mv "$work/program" "$file"
}
