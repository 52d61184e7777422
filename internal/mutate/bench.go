package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bench builds mutants and runs the tests against them.
type bench struct {
	options
	pkg  *sources
	work string
	out  io.Writer

	all   string // the binary with the switched mutants
	tests []test // that pass without a mutant, the quick ones first

	reached []map[int]bool // by each of the tests: the numbers of switched mutants

	mu      sync.Mutex
	killers map[string][]string // by file: the tests that killed, the last one first
}

type test struct {
	name string
	file string
	took time.Duration
}

// slow is what a test takes that runs only when the quick ones have seen nothing.
const slow = 2 * time.Second

// prepare builds the binary of the switched mutants and runs the tests with none on. Tests
// that fail then are named and left out.
func (b *bench) prepare(drawn []*mutant) error {
	b.killers = map[string][]string{}
	for i, m := range drawn {
		m.number = i + 1
	}
	begun := time.Now()
	if err := b.buildAll(drawn); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%d mutants, built in %v\n", len(drawn), took(begun))
	begun = time.Now()
	names, err := b.list()
	if err != nil {
		return err
	}
	output, _, _ := b.exec(b.all, "", 15*time.Minute, "-test.v", "-test.run", either(names))
	b.readTests(output, names)
	fmt.Fprintf(b.out, "%d tests without a mutant in %v\n", len(b.tests), took(begun))
	if len(b.tests) == 0 {
		return errors.New("no test passes")
	}
	begun = time.Now()
	err = b.findReached()
	fmt.Fprintf(b.out, "what each test reaches found out in %v\n", took(begun))
	return err
}

// findReached runs each test alone and notes which mutants it reaches.
func (b *bench) findReached() error {
	b.reached = make([]map[int]bool, len(b.tests))
	todo := make(chan int)
	var workers sync.WaitGroup
	var failed atomic.Pointer[error]
	for range max(1, b.jobs) {
		workers.Go(func() {
			for i := range todo {
				var err error
				if b.reached[i], err = b.reachedBy(b.tests[i].name); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	for i := range b.tests {
		todo <- i
	}
	close(todo)
	workers.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// reachedBy returns the numbers of the mutants that a test reaches.
func (b *bench) reachedBy(name string) (map[int]bool, error) {
	f, err := os.CreateTemp(b.work, "reached")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b.exec(b.all, reachedVariable+"="+f.Name(), b.limit([]string{name}), "-test.run", either([]string{name}))
	text, err := io.ReadAll(f)
	reached := map[int]bool{}
	for _, line := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(line); err == nil {
			reached[n] = true
		}
	}
	return reached, err
}

// list returns the names of the tests that the options choose.
func (b *bench) list() (names []string, err error) {
	output, ok, _ := b.exec(b.all, "", time.Minute, "-test.list", ".")
	if !ok {
		return nil, fmt.Errorf("list the tests: %s", output)
	}
	for _, name := range strings.Fields(output) {
		if (b.run == nil || b.run.MatchString(name)) && (b.skip == nil || !b.skip.MatchString(name)) &&
			!strings.HasPrefix(name, "Benchmark") {
			names = append(names, name)
		}
	}
	return names, nil
}

var verdict = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)`)

// readTests reads the result of the run without a mutant.
func (b *bench) readTests(output string, names []string) {
	files := b.testFiles()
	passed := map[string]bool{}
	for _, v := range verdict.FindAllStringSubmatch(output, -1) {
		seconds, _ := strconv.ParseFloat(v[3], 64)
		took := time.Duration(seconds * float64(time.Second))
		passed[v[2]] = v[1] == "PASS"
		if passed[v[2]] && (b.quick == 0 || took <= b.quick) {
			b.tests = append(b.tests, test{v[2], files[v[2]], took})
		}
	}
	slices.SortStableFunc(b.tests, func(x, y test) int { return cmp.Compare(x.took, y.took) })
	for _, name := range names {
		if !passed[name] {
			fmt.Fprintln(b.out, "left out, as it does not pass without a mutant:", name)
		}
	}
}

var declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)

// testFiles maps the tests to the files that they stand in.
func (b *bench) testFiles() map[string]string {
	files := map[string]string{}
	names, _ := filepath.Glob(filepath.Join(b.by, "*_test.go"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		for _, d := range declared.FindAllSubmatch(text, -1) {
			files[string(d[1])] = filepath.Base(name)
		}
	}
	return files
}

var place = regexp.MustCompile(`(?m)^\S*?([^/\s:]+\.go):(\d+):(?:\d+:)? `)

// buildAll builds the binary of the switched mutants. Those on lines that do not compile
// become mutants with a binary of their own.
func (b *bench) buildAll(drawn []*mutant) error {
	b.all = filepath.Join(b.work, "all.test")
	for range 20 {
		files := map[string][]byte{"ganbauth_mutants.go": switchFile(b.pkg.name)}
		for _, f := range b.pkg.files {
			files[f.name] = f.switched(drawn)
		}
		output, err := b.build("all", b.all, files)
		if err == nil {
			return nil
		}
		unswitched := false
		for _, p := range place.FindAllStringSubmatch(output, -1) {
			line, _ := strconv.Atoi(p[2])
			unswitched = b.unswitch(drawn, p[1], line) || unswitched
		}
		if !unswitched {
			return fmt.Errorf("the package with its mutants off does not compile: %s", output)
		}
	}
	return errors.New("the package with its mutants off does not compile")
}

// unswitch has the mutants on a line be built alone: the constants, whose types are
// guessed, or else all.
func (b *bench) unswitch(drawn []*mutant, file string, line int) (any bool) {
	for _, constants := range []bool{true, false} {
		for _, m := range drawn {
			last := m.line + strings.Count(m.old, "\n")
			if m.file == file && m.switched() && m.line <= line && line <= last &&
				(!constants || m.kind == "constant changed") {
				m.before, m.after = "", ""
				any = true
			}
		}
		if any {
			return true
		}
	}
	return false
}

// build makes a test binary with some of the package's files replaced.
func (b *bench) build(name, binary string, files map[string][]byte) (output string, err error) {
	dir := filepath.Join(b.work, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, text := range files {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return "", err
		}
		overlay.Replace[filepath.Join(b.pkg.dir, file)] = path
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-gcflags=-e", "-ldflags=-w", "-overlay", path, "-o", binary, ".")
	cmd.Dir = b.by
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// exec runs a test binary with a setting in its environment: the mutant that is on, for
// one. A loop without an end is stopped by the time, or by its memory.
func (b *bench) exec(binary, setting string, timeout time.Duration, args ...string) (output string, ok, timedOut bool) {
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -v 8388608 2>/dev/null; exec "$0" "$@"`, binary,
		"-test.failfast=" + strconv.FormatBool(setting != ""), "-test.timeout=" + timeout.String()}, args...)...)
	cmd.Dir = b.by
	cmd.Env = append(os.Environ(), setting)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	stop := time.AfterFunc(timeout+10*time.Second, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	err := cmd.Run()
	output = out.String()
	return output, err == nil, strings.Contains(output, "panic: test timed out")
}

// testAll finds out each mutant's fate. Those that need a binary of their own, which takes
// seconds to build, come last.
func (b *bench) testAll(drawn []*mutant) {
	var quick, built []*mutant
	for _, m := range drawn {
		if m.switched() {
			quick = append(quick, m)
		} else {
			built = append(built, m)
		}
	}
	todo := make(chan *mutant)
	var workers sync.WaitGroup
	for range max(1, b.jobs) {
		workers.Go(func() {
			for m := range todo {
				b.test(m)
			}
		})
	}
	for _, m := range slices.Concat(quick, built) {
		if m.fate != fateEquivalent {
			todo <- m
		}
	}
	close(todo)
	workers.Wait()
}

// test runs the tests against m, those first that are the likeliest to see it.
func (b *bench) test(m *mutant) {
	begun := time.Now()
	binary := b.all
	if !m.switched() {
		binary = filepath.Join(b.work, m.id+".test")
		defer os.Remove(binary)
		files := map[string][]byte{}
		for _, f := range b.pkg.files {
			if f.name == m.file {
				files[f.name] = f.alone(m)
			}
		}
		if _, err := b.build(m.id, binary, files); err != nil {
			m.fate = fateNotCompiled
		}
	}
	for _, names := range b.inTurn(m) {
		if m.fate == fateLived {
			b.see(m, binary, names)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case m.fate == fateKilled:
		killers := slices.DeleteFunc(b.killers[m.file], func(name string) bool { return name == m.killer })
		b.killers[m.file] = slices.Insert(killers, 0, m.killer)
		if b.verbose {
			fmt.Fprintf(b.out, "killed %s (%s, %v)\n", m, m.killer, took(begun))
		}
	case m.fate == fateLived:
		fmt.Fprintf(b.out, "lives  %s (%v)\n", m, took(begun))
	}
}

// likely is how many of the tests that killed the last mutants of a file run first, each
// alone: the next mutant is often on the same line.
const likely = 3

// inTurn returns the tests that reach m in groups: those that killed the last mutants of
// its file, then those of its own test file and all that have killed mutants of the file,
// then the other quick ones, then the slow ones.
func (b *bench) inTurn(m *mutant) (groups [][]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	reach := map[string]bool{}
	var own, others, late []string
	ownFile := strings.TrimSuffix(m.file, ".go") + "_test.go"
	for i, t := range b.tests {
		if m.switched() && !b.reached[i][m.number] {
			continue
		}
		reach[t.name] = true
		switch {
		case t.took > slow:
			late = append(late, t.name)
		case t.file == ownFile || slices.Contains(b.killers[m.file], t.name):
			own = append(own, t.name)
		default:
			others = append(others, t.name)
		}
	}
	for _, killer := range b.killers[m.file] {
		if reach[killer] && len(groups) < likely {
			groups = append(groups, []string{killer})
		}
	}
	return append(groups, own, others, late)
}

var (
	failed = regexp.MustCompile(`(?m)^\s*--- FAIL: ([^\s/]+)`)
	began  = regexp.MustCompile(`(?m)^=== RUN   ([^\s/]+)$`)
)

// see runs some tests against m. A test has seen it if it fails a second time, alone: a
// busy machine fails tests, too.
func (b *bench) see(m *mutant, binary string, names []string) {
	for len(names) > 0 {
		output, ok, timedOut := b.exec(binary, variable+"="+strconv.Itoa(m.number), b.limit(names), "-test.v", "-test.run", either(names))
		if ok {
			return
		}
		killer := lastOf(began, output)
		if f := lastOf(failed, output); f != "" {
			killer = f
		}
		if !timedOut && killer != "" {
			if _, ok, _ = b.exec(binary, variable+"="+strconv.Itoa(m.number), b.limit([]string{killer}), "-test.run", either([]string{killer})); ok {
				names = slices.DeleteFunc(names, func(name string) bool { return name == killer })
				continue
			}
		}
		m.fate, m.killer = fateKilled, killer
		return
	}
}

func lastOf(re *regexp.Regexp, output string) string {
	found := re.FindAllStringSubmatch(output, -1)
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1][1]
}

// limit is the time that tests get: much more than they take without a mutant.
func (b *bench) limit(names []string) time.Duration {
	limit := 30 * time.Second
	for _, t := range b.tests {
		if slices.Contains(names, t.name) {
			limit += 4 * t.took
		}
	}
	return limit
}

// either is the expression for tests of these names.
func either(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }
