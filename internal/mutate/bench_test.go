package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is a module whose tests see some mutants, and one that fails whatever is mutated.
var module = map[string]string{
	"go.mod": "module x\n\ngo 1.25\n",
	"x.go": `package x

import "time"

const limit = 3

func over(n int) bool { return n > limit }

func wait() time.Duration { return 2 * time.Second }

func sum(list []int) (n int) {
	for _, v := range list {
		if v < 0 {
			continue
		}
		n += v
	}
	return n
}

func unseen() {
	sum(nil)
}

func unused() int {
	x := 1 << 0
	return x
}
`,
	"x_test.go": `package x

import "testing"

func TestOver(t *testing.T) {
	if over(3) || !over(4) {
		t.Fatal("over")
	}
}

func TestWait(t *testing.T) {
	if wait() != 2e9 {
		t.Fatal("wait")
	}
}

func TestSum(t *testing.T) {
	if sum([]int{1, -1, 2}) != 3 {
		t.Fatal("sum")
	}
	unseen()
}

func TestFails(t *testing.T) { t.Fatal("always") }
`,
}

// TestMutate holds the fates, and that the package is not touched.
func TestMutate(t *testing.T) {
	dir := t.TempDir()
	for name, text := range module {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	run := func(args ...string) string {
		o, err := parseOptions(append(args, dir))
		require.NoError(t, err)
		var out strings.Builder
		require.NoError(t, mutate(o, &out))
		t.Log(out.String())
		return out.String()
	}
	all := run("-v")
	require.Contains(t, all, "left out, as it does not pass without a mutant: TestFails")
	for _, killed := range []string{
		"constant changed: 3 => 4", "value returned: return n > limit => return !(n > limit)", "operator turned: n > limit => n >= limit",
		"constant changed: 2 => 3", "operator turned: 2 * time.Second => 2 / time.Second",
		"continue removed: continue => nothing", "assignment removed: n += v => nothing", "never: v < 0 => false && (v < 0)",
	} {
		require.Regexp(t, `killed x.go:\d+: [0-9a-f]{8}: `+strings.NewReplacer("(", `\(`, ")", `\)`, "*", `\*`, "+", `\+`, "=>", " => ").Replace(killed)+` \(Test`, all)
	}
	_, living, _ := strings.Cut(all, "\n\n")
	require.Regexp(t, `(?m)^x.go:22: [0-9a-f]{8}: call removed: sum\(nil\)  =>  nothing$`, living)
	require.Regexp(t, `(?m)^x.go:\d+: [0-9a-f]{8}: operator turned: v < 0  =>  v <= 0$`, living)
	require.Regexp(t, `\d+ mutants: \d+ killed, \d+ lived, 0 equivalent, 0 not compiled: \d+\.\d %`, living)

	require.Contains(t, run("-n", "3", "-seed", "7"), "3 mutants: ")
	require.Equal(t, summary(run("-n", "3", "-seed", "7")), summary(run("-n", "3", "-seed", "7")))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, len(module))
	for name, text := range module {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, text, string(data))
	}
}

// TestBy holds that the tests may be another package's.
func TestBy(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":      "module x\n\ngo 1.25\n",
		"x.go":        "package x\n\nfunc Half(n int) int { return n / 2 }\n",
		"y/y_test.go": "package y\n\nimport (\n\t\"testing\"\n\t\"x\"\n)\n\nfunc TestHalf(t *testing.T) {\n\tif x.Half(4) != 2 {\n\t\tt.Fatal()\n\t}\n}\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	o, err := parseOptions([]string{"-v", "-by", filepath.Join(dir, "y"), dir})
	require.NoError(t, err)
	var out strings.Builder
	require.NoError(t, mutate(o, &out))
	require.Regexp(t, `killed x.go:3: [0-9a-f]{8}: operator turned: n / 2  =>  n \* 2 \(TestHalf`, out.String())
}

func summary(output string) string {
	_, summary, _ := strings.Cut(output, "\n\n")
	return summary
}

// TestOptions holds the flags that a command line must not have.
func TestOptions(t *testing.T) {
	for _, args := range [][]string{{}, {"a", "b"}, {"-run", "(", "a"}, {"-skip", "(", "a"}, {"-what", "a"}} {
		_, err := parseOptions(args)
		require.Error(t, err, args)
	}
	o, err := parseOptions([]string{"-files", "a.go,b.go", "-mutants", "1,2", "-run", "X", "."})
	require.NoError(t, err)
	require.Equal(t, []string{"a.go", "b.go"}, o.files)
	require.Equal(t, []string{"1", "2"}, o.mutants)
	require.True(t, o.run.MatchString("TestX"))
}
