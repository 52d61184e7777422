package testenv

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// I13: a test that needs a program which is missing says so where ./test looks for it, and
// fails under CI=true. It runs itself in another process.
func TestI13SkipIsShown(t *testing.T) {
	const child = "GANBAUTH_NEEDS_MISSING"
	if os.Getenv(child) != "" {
		Needs(t, "no-such-program", "nor-this-one")
		t.Fatal("a program that is missing was found")
	}
	script, err := os.ReadFile("../../test")
	require.NoError(t, err)
	require.Contains(t, string(script), `'s|^ *[a-z0-9_]*\.go:[0-9]*: \(SKIP: .*\)|\1|p'`, "what ./test shows")
	shown := regexp.MustCompile(`(?m)^ *[a-z0-9_]*\.go:[0-9]*: (SKIP: .*)`)
	run := func(ci string) (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestI13SkipIsShown$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1", "CI="+ci)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	out, err := run("")
	require.NoError(t, err, out)
	require.Equal(t, "SKIP: no-such-program is not installed", shown.FindStringSubmatch(out)[1])

	out, err = run("true")
	require.Error(t, err)
	require.Contains(t, out, "no-such-program is not installed")
	require.NotContains(t, out, "SKIP")

	require.NotEmpty(t, Needs(t, "no-such-program", "go"), "one of them is enough")
}

// A process that is paused answers nothing, not even what it was about when it was told.
// Each connection to PostgreSQL is a child of the process.
func TestPause(t *testing.T) {
	server, dsn := Postgres(t)
	psql := exec.Command(Needs(t, "psql"), dsn, "-qAt")
	in, err := psql.StdinPipe()
	require.NoError(t, err)
	stdout, err := psql.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, psql.Start())
	t.Cleanup(func() { _ = psql.Process.Kill(); _ = psql.Wait() })
	out := bufio.NewReader(stdout)
	for i := range 20 {
		server.Pause()
		for _, pid := range server.pids() {
			require.False(t, runs(pid))
		}
		fmt.Fprintf(in, "SELECT %d;\n", i)
		server.Resume()
		line, err := out.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintln(i), line)
	}
	require.Greater(t, len(server.pids()), 2)
	require.True(t, runs(os.Getpid()), "this one")
}
