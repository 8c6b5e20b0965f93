"""What people work with all day: version control, archives, a search through text, C++."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, need

GIT = """
    git init -q -b main r && cd r && git config user.name a && git config user.email a@b
    export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
    cp ../words . && git add words && git commit -qm one
    sed -i 5s/^/E/ words && git diff --stat && git commit -qam two
    git log --oneline --graph; git fsck --no-progress 2>&1 || echo $?
    rm -rf .git
"""
ARCHIVES = """
    mkdir d && cp words d && tar czf a.tgz --sort=name --mtime=@0 --owner=0 --group=0 d
    rm -r d && tar xzf a.tgz && cmp words d/words
    grep -nE '[aeiou]{3}' words | sed -n 's/^[0-9]*:/& /p' | awk '{n += length($2)} END {print n}'
    find . -name 'w*' -newermt @1 -exec sha256sum {} + && rm a.tgz
"""
CPLUSPLUS = r"""
#include <atomic>
#include <iostream>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>

struct Third : std::runtime_error { using runtime_error::runtime_error; };

static int check(int number) {
    if (number % 3 == 0) throw Third("third " + std::to_string(number));
    return number;
}

int main() {
    std::atomic<int> total{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 300; i++)
                try { total += check(i + t); } catch (const Third &) { total += 1; }
        });
    for (auto &thread : threads) thread.join();
    std::map<std::string, double> ordered{{"pi", 3.14159}, {"e", 2.71828}};
    for (auto &[name, number] : ordered) std::cout << name << ' ' << number << '\n';
    try {
        std::vector<int>{}.at(5);
    } catch (const std::exception &error) {
        std::cout << error.what() << '\n';
    }
    std::cout << total << std::endl;
    throw Third("nobody catches this");
}
"""


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, write_material)


def test_git_keeps_a_history(laboratory: Laboratory) -> None:
    need("git", "sh")
    got, _ = laboratory.check("sh", "-ec", GIT)
    assert got.stdout.count(b"* ") == 2


def test_archives_and_searches(laboratory: Laboratory) -> None:
    need("tar", "gzip", "awk", "bash")
    laboratory.check("bash", "-ec", ARCHIVES)


def test_cplusplus_with_threads_and_exceptions(laboratory: Laboratory, tmp_path: Path) -> None:
    need("g++")
    (tmp_path / "program.cc").write_text(CPLUSPLUS)
    command = ["g++", "-O1", "-std=c++17", "-pthread", "program.cc", "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    got, _ = laboratory.check(str(tmp_path / "program"))
    assert got.status == 134 and b"nobody catches this" in got.stderr
