"""Debian's own small programs, traced: the same output, status and files as natively, and not one
bus lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, need

ONE_PROGRAM = [
    "ls -lR tree /etc/apt",
    "sort --parallel=2 --buffer-size=64K words",
    "sort -k2.3,2 -t: -s -r columns",
    "sort -g floats",
    "sha256sum bytes words",
    "cksum -a sha512 bytes",
    "b2sum bytes",
    "md5sum --check /dev/stdin",
    "wc words bytes numbers",
    "cut -d: -f2 columns",
    "tr a-e A-E",
    "date -u -d 2023-03-31T12:00:00Z+1month +%c,%s,%j,%U",
    "date -u -d @1709210096.123456789 --iso-8601=ns",
    "dd if=bytes bs=1000 skip=3 count=77 conv=swab status=none",
    "dd if=bytes of=made bs=512 seek=9 count=5 status=none",
    "seq -f %.9g 0 0.1 80",
    "seq 1 30000",
    "find tree -type f -size -2 -printf %p:%s:%T@\\n",
    "find . -name t* -newermt 2020-01-01 -exec basename {} ;",
    "du -a -b tree",
    "cp -a tree copy",
    "mv tree/deep moved",
    "rm -r tree",
    "ln -s tree/one pointer",
    "mkdir -p -m 750 a/b/c",
    "split -b 64k bytes part-",
    "od -A d -t fD -N 30000 bytes",
    "od -t x8z -N 10000 bytes",
    "base64 -w 100 bytes",
    "factor 18446744073709551557 1000000007000000049 600851475143",
    "numfmt --to=iec 123456789 5000 1099511627776",
    "join sorted sorted",
    "comm -12 sorted words",
    "paste -d, numbers words",
    "tac words",
    "nl -b a numbers",
    "fold -w 30 bytes",
    "pr -4 -l 40 sorted",
    "shuf --random-source=bytes numbers",
    "expr 99999999999999999999 * 88888888888888888888",
    "printf %.30f|%e|%a|%q|%b\\n 0.1 1e300 3.5 it's x\\ty",
    "cat no-such-file",
    "timeout -s KILL 60 true",
    'awk {s+=$1*0.1;c[$1%7]++}END{printf"%.10f",s;for(i=0;i<7;i++)print(c[i])} numbers',
    "awk -F: {gsub(/[aeiou]+/,substr($2,1,1));print(length,$1*1.5,toupper($0))} columns",
    "sed -n s/\\([a-c]*\\)d/<\\1>/gp words",
    "sed -i y/abc/xyz/ words",
    "grep -c -E (ab|cd)+e.*j$ words",
    "grep -n -P (?<=a)b(?=c) words",
    "grep -q -F nowhere words",
    "tar -c -f - tree --sort=name --numeric-owner",
    "gzip -9 -n words",
    "gzip -c -n bytes",
    "git --version",
    "openssl dgst -sha3-256 bytes",
    "openssl enc -aes-128-cbc -K 000102030405060708090a0b0c0d0e0f -iv 00 -in words -a",
    "sqlite3 --version",
    "diff -u sorted words",
    "cmp -l bytes words",
    "xargs -n 60 echo",
]


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, write_material)


@pytest.mark.parametrize("line", ONE_PROGRAM)
def test_it_does_what_it_does_natively(line: str, laboratory: Laboratory) -> None:
    command = line.split(" ")
    need(command[0])
    stdin = b"the quick brown fox jumps over the lazy dog, and back again\n" * 20
    got, _ = laboratory.check(*command, stdin=stdin)
    assert got.stdout or got.stderr or got.files
