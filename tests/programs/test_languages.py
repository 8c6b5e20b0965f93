"""perl, python3, sqlite3 and awk as guests: their libraries, floating point, threads, children."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, need

PYTHON = "/usr/bin/python3"

PERL = {
    "regular expressions": r"""
        open my $f, '<', 'words'; local $/; my $t = <$f>;
        my $n = () = $t =~ /(\w)\1/g; print "$n\n";
        (my $u = $t) =~ s/(?<=a)([b-d]+)(?=e)/<$1>/g; print length($u), "\n";
        my %seen; $seen{substr $_, 0, 2}++ for split /\n/, $t;
        print map { "$_=$seen{$_}\n" } (sort { $seen{$b} <=> $seen{$a} || $a cmp $b }
            keys %seen)[0..9];
        print join(',', map { sprintf '%03d', $_ } grep { $_ & 1 } 1 .. 9), "\n";
    """,
    "numbers": r"""
        my $s = 0; $s += sqrt($_) * 1.1 for 1 .. 20000;
        printf "%.12f %s %e %g %a\n", $s, 1e22 / 3, $s, 1e-5, 1 / 3;
        printf "%.20g %s %s %s\n", 0.1, 9 ** 20, -7 % 3, int(-3.7);
        print 2 ** 63, ' ', 0xffffffffffffffff, ' ', 1e308 * 10, ' ', -(9 ** 9 ** 9), "\n";
        print unpack('H*', pack('d>fqn', 1 / 3, 2.5, -5, 513)), "\n";
        printf "%s\n", join ' ', map { sprintf '%.15g', atan2($_, 7) } 1 .. 5;
    """,
    "children": r"""
        $| = 1; my @kids;
        for my $n (1 .. 3) { my $pid = fork; if (!$pid) { exit $n * 3 } push @kids, $pid }
        for my $pid (@kids) { waitpid $pid, 0; print $? >> 8, "\n" }
        my $pid = fork; if (!$pid) { kill 'KILL', $$; sleep 9 }
        waitpid $pid, 0; print $? & 127, "\n";
        pipe my $r, my $w; if (!fork) { close $r; print $w "from the child\n"; exit } close $w;
        print <$r>; wait; print `echo backticks`; print system('false; exit 7') >> 8, "\n";
        open my $p, '-|', 'seq', 3; print <$p>; close $p; print "$?\n";
    """,
    "signals": r"""
        $| = 1; $SIG{USR1} = sub { print "got $_[0]\n" }; kill 'USR1', $$; print "after\n";
        $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; 1 while 1 }; print $@;
        $SIG{__WARN__} = sub { print "warned: @_" }; warn "x\n"; eval { die { code => 5 } };
        print $@->{code}, "\n"; exit 3;
    """,
}

PYTHON_3 = {
    "json and re": """
        import json, re
        text = open("words").read()
        print(len(re.findall(r"\\b(a|b)+[c-f]*g\\b", text)))
        print(re.sub(r"(a+)(b*)", r"\\2\\1", text)[:80])
        document = {"a": [0.1, 1e300, -0.0, 2**70], "b": None, "words": text.split()[:200]}
        print(json.dumps(document, sort_keys=True), json.loads(json.dumps(document)) == document)
    """,
    "decimal and math": """
        import decimal, math
        decimal.getcontext().prec = 60
        print(decimal.Decimal(2).sqrt(), decimal.Decimal(1).exp(), decimal.Decimal("1e-50") / 3)
        print(math.sqrt(2), math.fsum([0.1] * 10), math.comb(100, 50), math.fmod(-7.5, 2))
        print(math.ldexp(0.3, -1070), math.nextafter(1, 2), math.exp(1.5), math.pi**7)
        print(round(2.675, 2), f"{0.1:.25f}", 5e-324, float.hex(1 / 3), divmod(-7.5, 2))
        print(7**400 % 10**30, 3**2000 // 7**500, math.sin(1e22))
    """,
    "hashlib and zlib": """
        import hashlib, zlib, struct
        data = open("bytes", "rb").read()
        for name in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"):
            print(name, hashlib.new(name, data).hexdigest())
        packed = zlib.compress(data + bytes(100000), 9)
        print(len(packed), zlib.crc32(data), zlib.adler32(data))
        print(zlib.decompress(packed)[:200000] == data)
        print(struct.pack("<dfeq", 1 / 3, 1 / 3, 1 / 3, -5).hex())
    """,
    "sqlite3": """
        import sqlite3
        base = sqlite3.connect("base")
        base.execute("create table t(a integer primary key, b real, c text)")
        base.executemany("insert into t values(?, ?, ?)", [(i, i / 7, str(i)) for i in range(2000)])
        base.commit()
        print(base.execute("select count(*), sum(b), max(c) from t where a % 7 = 3").fetchall())
        base.close()
    """,
    "threads": """
        import queue, threading
        work, done, lock, total = queue.Queue(), queue.Queue(), threading.Lock(), 0
        def serve():
            global total
            while (item := work.get()) is not None:
                with lock:
                    total += item
                done.put(item * item)
        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads: thread.start()
        for item in range(300): work.put(item)
        for thread in threads: work.put(None)
        for thread in threads: thread.join()
        print(total, sum(done.get() for _ in range(300)), threading.active_count())
        event = threading.Event(); threading.Timer(0.05, event.set).start(); print(event.wait(60))
    """,
    "children": """
        import os, subprocess, sys
        print(subprocess.run(["tr", "a-z", "A-Z"], input=b"shout", capture_output=True).stdout)
        done = subprocess.run("echo out; echo err >&2; exit 5", shell=True, capture_output=True)
        print(done.returncode, done.stdout, done.stderr)
        print(subprocess.run(["sh", "-c", "kill -TERM $$"]).returncode)
        try: subprocess.run(["sleep", "100"], timeout=0.2)
        except subprocess.TimeoutExpired: print("timed out")
        try: subprocess.run(["/no/such"])
        except FileNotFoundError as error: print(error)
        sys.stdout.flush()
        if (child := os.fork()) == 0: os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        reader, writer = os.pipe()
        if os.fork() == 0: os.write(writer, b"piped"); os._exit(0)
        print(os.read(reader, 9), os.wait()[1])
    """,
    "signals": """
        import os, signal, time
        signal.signal(signal.SIGUSR1, lambda number, frame: print("handler", number, flush=1))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGALRM, lambda number, frame: print("alarm", flush=1))
        signal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        os.kill(os.getpid(), signal.SIGUSR2)
        print(signal.sigpending(), signal.sigwait({signal.SIGUSR2}), flush=True)
        signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.alarm(1); time.sleep(100)
    """,
    "sockets and epoll": """
        import select, socket, threading
        server = socket.create_server(("127.0.0.1", 0))
        def answer():
            connection, _ = server.accept()
            with connection: connection.sendall(connection.recv(100).upper())
        thread = threading.Thread(target=answer); thread.start()
        client = socket.create_connection(server.getsockname()); client.sendall(b"hello")
        poll = select.epoll(); poll.register(client, select.EPOLLIN)
        print(len(poll.poll(60)), client.recv(100)); thread.join()
        left, right = socket.socketpair(); left.sendmsg([b"a", b"bc"]); print(right.recv(10))
    """,
}

SQL = """
    create table t(a integer primary key, b text, c real);
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
    insert into t select i, hex(i * i), i / 7.0 from n;
    create index tb on t(b);
    select count(*), sum(a), avg(c), min(b), max(b) from t where b like '%3%';
    select substr(b, 1, 2), count(*) from t group by 1 order by 2 desc, 1 limit 5;
    select printf('%.15g', sum(c * c)) from t;
    begin; update t set c = c * 2 where a % 3 = 0; delete from t where a > 1500; commit;
    select total(c) from t; pragma integrity_check;
"""


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, write_material)


@pytest.mark.parametrize("name", PERL)
def test_perl_does_what_it_does_natively(name: str, laboratory: Laboratory) -> None:
    need("perl")
    laboratory.check("perl", "-w", "-e", PERL[name])


@pytest.mark.parametrize("name", PYTHON_3)
def test_python_does_what_it_does_natively(name: str, laboratory: Laboratory) -> None:
    need(PYTHON)
    got, _ = laboratory.check(PYTHON, "-S", "-c", textwrap.dedent(PYTHON_3[name]))
    assert got.stdout


def test_sqlite3_keeps_a_database(laboratory: Laboratory) -> None:
    need("sqlite3")
    got, _ = laboratory.check("sqlite3", "base", stdin=textwrap.dedent(SQL).encode())
    assert got.stdout.endswith(b"ok\n")
    assert "base" in got.files
