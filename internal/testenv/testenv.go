// Package testenv starts the real parts that tests need.
package testenv

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Needs returns the path of the first of the programs that is there, or skips the test.
// Under CI=true a missing part is a failure.
func Needs(t testing.TB, programs ...string) string {
	t.Helper()
	for _, program := range programs {
		if path, err := exec.LookPath(program); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", programs[0])
	}
	t.Skipf("SKIP: %s is not installed", programs[0])
	return ""
}

// FreePort returns a loopback port that nothing listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Process is a server that a test has started.
type Process struct {
	Addr    string
	command func() *exec.Cmd
	ready   func() error
	cmd     *exec.Cmd
	ended   chan struct{}
}

// Start starts it, again after Stop, and waits until it answers.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	p.launch(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.ended: // PostgreSQL refuses to start while a child of the one before it lives
			p.launch(t)
		default:
		}
		err := p.ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", p.cmd.Path, err)
		}
	}
}

// launch starts the program once more.
func (p *Process) launch(t testing.TB) {
	t.Helper()
	cmd, ended := p.command(), make(chan struct{})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	p.cmd, p.ended = cmd, ended
}

// Stop kills it and its children as a power failure would.
func (p *Process) Stop() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// Pause stops it from answering while its connections stay open, and Resume has it go on.
// A thread may finish what it is about after the signal, so Pause waits for all of them.
func (p *Process) Pause() {
	for {
		p.signal(syscall.SIGSTOP)
		if !slices.ContainsFunc(p.pids(), runs) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Resume ends Pause.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) {
	for _, pid := range p.pids() {
		_ = syscall.Kill(pid, s)
	}
}

// pids are those of the process and its children: each connection to PostgreSQL has a
// process of its own.
func (p *Process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		if stat, ok := readStat(file); ok && stat.parent == p.cmd.Process.Pid {
			pids = append(pids, stat.pid)
		}
	}
	return pids
}

// runs reports whether a thread of the process may run.
func runs(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return slices.ContainsFunc(threads, func(file string) bool {
		thread, ok := readStat(file)
		return ok && !strings.Contains("TZX", thread.state)
	})
}

// stat is what /proc says of a process or a thread. See proc_pid_stat(5).
type stat struct {
	pid, parent int
	state       string // T for stopped, Z and X for dead
}

func readStat(file string) (s stat, ok bool) {
	data, _ := os.ReadFile(file) // it may be gone
	_, rest, _ := strings.Cut(string(data), ") ")
	_, err := fmt.Sscan(string(data), &s.pid)
	if err == nil {
		_, err = fmt.Sscan(rest, &s.state, &s.parent)
	}
	return s, err == nil
}

// Redis starts a redis-server that keeps its data over a Stop. The arguments are added to
// its command line.
func Redis(t testing.TB, args ...string) *Process {
	t.Helper()
	program, dir, port := Needs(t, "redis-server"), t.TempDir(), strconv.Itoa(FreePort(t))
	p := &Process{
		Addr: net.JoinHostPort("127.0.0.1", port),
		command: func() *exec.Cmd {
			return exec.Command(program, append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "",
				"--appendonly", "yes", "--appendfsync", "always"}, args...)...)
		},
	}
	p.ready = p.listens
	p.Start(t)
	t.Cleanup(p.Stop)
	return p
}

// RedisCluster starts a Redis Cluster of that many nodes and returns their addresses.
func RedisCluster(t testing.TB, nodes int) (addrs []string) {
	t.Helper()
	const slots = 16384
	ask := func(addr, command string) string {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "%s\r\nQUIT\r\n", command); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || strings.HasPrefix(string(answer), "-") {
			t.Fatalf("%s: %s%v", command, answer, err)
		}
		return string(answer)
	}
	for i := range nodes {
		bus := strconv.Itoa(FreePort(t))
		addrs = append(addrs, Redis(t, "--cluster-enabled", "yes", "--cluster-port", bus).Addr)
		ask(addrs[i], fmt.Sprintf("CLUSTER ADDSLOTSRANGE %d %d", slots*i/nodes, slots*(i+1)/nodes-1))
		host, port, err := net.SplitHostPort(addrs[i])
		if err != nil {
			t.Fatal(err)
		}
		ask(addrs[0], "CLUSTER MEET "+host+" "+port+" "+bus)
	}
	for _, addr := range addrs {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			info := ask(addr, "CLUSTER INFO")
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r", nodes)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(info)
			}
		}
	}
	return addrs
}

// RedisSentinel starts a Redis, a replica of it, and a Sentinel that makes the replica the
// primary half a second after the first one has gone. It returns the Sentinel's address. The
// primary's name there is "primary".
func RedisSentinel(t testing.TB) (addr string, primary *Process) {
	t.Helper()
	primary = Redis(t)
	host, port, err := net.SplitHostPort(primary.Addr)
	if err != nil {
		t.Fatal(err)
	}
	Redis(t, "--replicaof", host+" "+port)
	dir, own := t.TempDir(), strconv.Itoa(FreePort(t))
	file := filepath.Join(dir, "sentinel.conf") // it must be one that Sentinel can write
	config := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor primary %s %s 1\n"+
		"sentinel down-after-milliseconds primary 500\nsentinel failover-timeout primary 2000\n", own, dir, host, port)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Process{
		Addr:    net.JoinHostPort("127.0.0.1", own),
		command: func() *exec.Cmd { return exec.Command(Needs(t, "redis-server"), file, "--sentinel") },
	}
	p.ready = func() error {
		conn, err := net.DialTimeout("tcp", p.Addr, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond)) // Sentinel knows no QUIT
		_, _ = fmt.Fprint(conn, "SENTINEL REPLICAS primary\r\n")
		replicas, _ := io.ReadAll(conn)
		if !strings.Contains(string(replicas), "master-link-status\r\n$2\r\nok\r\n") {
			return fmt.Errorf("no replica: %s", replicas)
		}
		return nil
	}
	p.Start(t)
	t.Cleanup(p.Stop)
	return p.Addr, primary
}

func (p *Process) listens() error {
	conn, err := net.DialTimeout("tcp", p.Addr, time.Second)
	if err == nil {
		err = conn.Close()
	}
	return err
}

// Postgres starts a PostgreSQL with an empty database, and returns the connection string,
// too. It runs as the user postgres where the test is root, whom PostgreSQL refuses.
func Postgres(t testing.TB) (*Process, string) {
	t.Helper()
	program := func(name string) string { // the newest of Debian's, which are not in PATH
		installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
		slices.Reverse(installed)
		return Needs(t, append(installed, name)...)
	}
	initdb, postgres, isReady := program("initdb"), program("postgres"), program("pg_isready")
	dir, port := t.TempDir(), strconv.Itoa(FreePort(t))
	attr := unprivileged(t, dir, "postgres")
	as := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as(initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	p := &Process{
		Addr: net.JoinHostPort("127.0.0.1", port),
		command: func() *exec.Cmd {
			return as(postgres, "-D", data, "-p", port, "-k", dir, "-c", "listen_addresses=127.0.0.1")
		},
		ready: func() error { return as(isReady, "-q", "-h", "127.0.0.1", "-p", port).Run() },
	}
	p.Start(t)
	t.Cleanup(p.Stop)
	return p, fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", p.Addr)
}

// MariaDB starts a MariaDB with an empty database, and returns the data source name, too.
// It runs as the user mysql where the test is root.
func MariaDB(t testing.TB) (*Process, string) {
	t.Helper()
	install, server, admin := Needs(t, "mariadb-install-db"), Needs(t, "mariadbd", "/usr/sbin/mariadbd"), Needs(t, "mariadb-admin")
	dir, port := t.TempDir(), strconv.Itoa(FreePort(t))
	attr := unprivileged(t, dir, "mysql")
	as := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(program, append([]string{"--no-defaults"}, args...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir) // two that are installed at once have the same names there
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as(install, "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v: %s", err, out)
	}
	p := &Process{
		Addr: net.JoinHostPort("127.0.0.1", port),
		command: func() *exec.Cmd {
			return as(server, "--datadir="+data, "--socket=s", "--pid-file=p", "--bind-address=127.0.0.1", "--port="+port,
				"--skip-name-resolve", "--innodb-buffer-pool-size=32M")
		},
		ready: func() error {
			return as(admin, "--protocol=tcp", "--host=127.0.0.1", "--port="+port, "--user=root", "--connect-timeout=2", "ping").Run()
		},
	}
	p.Start(t)
	t.Cleanup(p.Stop)
	if out, err := as(admin, "--protocol=tcp", "--host=127.0.0.1", "--port="+port, "--user=root", "create", "app").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-admin: %v: %s", err, out)
	}
	return p, fmt.Sprintf("root@tcp(%s)/app", p.Addr)
}

// PgBouncer starts a pooler in transaction mode before p, and returns the connection
// string through it.
func (p *Process) PgBouncer(t testing.TB) string {
	t.Helper()
	program, dir, port := Needs(t, "pgbouncer", "/usr/sbin/pgbouncer"), t.TempDir(), strconv.Itoa(FreePort(t))
	host, behind, err := net.SplitHostPort(p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "pgbouncer.ini")
	ini := fmt.Sprintf("[databases]\npostgres = host=%s port=%s user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\n"+
		"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n", host, behind, port)
	if err := os.WriteFile(config, []byte(ini), 0o644); err != nil {
		t.Fatal(err)
	}
	bouncer := &Process{Addr: net.JoinHostPort("127.0.0.1", port), command: func() *exec.Cmd {
		cmd := exec.Command(program, "-q", config)
		cmd.Dir, cmd.SysProcAttr = dir, unprivileged(t, dir, "postgres")
		return cmd
	}}
	bouncer.ready = bouncer.listens
	bouncer.Start(t)
	t.Cleanup(bouncer.Stop)
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", bouncer.Addr)
}

// unprivileged lets a program that refuses root run as another user, in a folder of the
// test's.
func unprivileged(t testing.TB, dir, user string) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.SysProcAttr{Credential: credential(t, user)}
}

// credential returns the credential of a system user, because some engines refuse to run
// as root.
func credential(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("user %s: %v %v", name, err1, err2)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
