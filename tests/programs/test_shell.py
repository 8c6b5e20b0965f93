"""bash as the guest: expansions, pipes, here-documents, traps, job control, and its children."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, need

SCRIPTS = {
    "expansions": r"""
        x=abcabc; echo ${x//b/Z} ${#x} ${x:2:3} ${x%b*} ${x##*b} ${y:-none} ${x^^} "${x@Q}"
        echo {1..5} {a,b}{c,d}; set -- one "two three"; echo $# "$2" "${*: -1}"
        declare -A map=([k]=v [l]=w); for key in k l; do echo "$key=${map[$key]}"; done
        for ((i = 0; i < 3000; i++)); do ((sum[i % 17] += i)); done; echo "${sum[@]}"
        [[ foobar =~ o+(b.) ]] && echo "${BASH_REMATCH[1]}"
        case xyz in x*) echo yes ;; esac
        printf '%05d %x %.3f %q\n' 42 255 3.14159 'a b'
        echo tree/* t?ee/[no]*
    """,
    "arithmetic": r"""
        echo $((0x1f * 3 ** 4 % 1000)) $((-7 / 2)) $((-7 % 3)) $((1 << 62)) $((7 > 3 ? 1 : 2))
        let 'a = 5, b = a++ + ++a'; echo $a $b $((36#zz)) $((9223372036854775807 + 1))
        echo $((1 / 0)); echo not reached
    """,
    "here-documents": r"""
        name=world
        cat <<END
        hello $name $((6 * 7)) $(echo nested)
        END
        cat <<'END'
        not $expanded
        END
        read -r a b <<<"one two three"; echo "$b"
        while read -r line; do n=$((n + ${#line})); done <sorted; echo $n
    """,
    "pipes": r"""
        seq 2000 | grep 7 | sort -rn | head -3
        false | true | (exit 3); echo "$? ${PIPESTATUS[*]}"
        set -o pipefail; false | true; echo $?
        yes | head -2
        echo a | { read -r x; echo "got $x"; }
        cat <(echo left) <(echo right) | tr a-z A-Z
    """,
    "subshells and statuses": r"""
        (cd tree; pwd >/dev/null; exit 5); echo $?
        x=$(echo inner; exit 4); echo "$x $?"
        no-such-command-anywhere; echo $?
        tree/one; echo $?
        { (kill -TERM $BASHPID); echo $?; (kill -SEGV $BASHPID); echo $?; } 2>/dev/null
        f() { local v=$1; ((v < 2)) && echo 1 || echo $((v * $(f $((v - 1))))); }; f 4
        exit 42
    """,
    "traps": r"""
        trap 'echo usr1' USR1; kill -USR1 $$; echo after
        trap 'echo child' CHLD; /bin/true; trap - CHLD
        trap '' INT; kill -INT $$; echo ignored
        trap 'echo leaving $?' EXIT
        trap 'echo err' ERR; false; trap - ERR
        (trap 'echo term; exit 9' TERM; kill -TERM $BASHPID; echo no); echo $?
        exit 6
    """,
    "job control": r"""
        set -m; exec 2>/dev/null
        sleep 100 & first=$!
        jobs
        kill -STOP $first; until [[ $(jobs) == *Stopped* ]]; do sleep 0.05; done; echo stopped
        kill -CONT $first; kill -TERM $first; while kill -0 $first; do sleep 0.05; done; echo gone
        (exit 7) & wait $!; echo $?
        (exit 8) & (exit 8) & wait -n; echo $?; wait
        kill %9 || echo no such job
    """,
    "coprocess and descriptors": r"""
        coproc CAT { cat; }; echo through >&"${CAT[1]}"; read -r back <&"${CAT[0]}"; echo "$back"
        exec {CAT[1]}>&-; wait
        exec 5>made 6<words; echo one >&5; read -r word <&6; echo "$word"; exec 5>&- 6<&-
        cat made; ls /proc/self/fd
        { echo out; echo err >&2; } 2>&1 | sort
    """,
    "files": r"""
        mkdir -p a/b; for i in 1 2 3; do echo $i >a/b/$i; done; cp -r a c; mv c/b d; rm -r a
        find . -name '[123]' | sort | xargs cat; test -d d -a ! -e a && echo good
        ln -s d e; readlink e; umask 027; : >made; stat -c %a made; chmod 600 made
        tar -cf x.tar d && tar -tf x.tar | sort; rm x.tar
    """,
}  # fmt: skip


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    need("bash")
    return Laboratory(tmp_path, write_material)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_does_what_it_does_natively(name: str, laboratory: Laboratory) -> None:
    got, _ = laboratory.check("bash", "-c", textwrap.dedent(SCRIPTS[name]))
    assert got.stdout
