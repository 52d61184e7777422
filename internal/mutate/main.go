// Mutate puts small faults into a package, one at a time, and runs the package's tests
// against each. A fault that no test sees is printed with its place:
//
//	go run ./internal/mutate [-n N] [-seed S] [-files a.go,b.go] [-run REGEXP]
//		[-quick D] [-mutants id,id] [-by DIR] DIR
//
// With -by the tests are those of another package, which may be in another module.
// The package's directory is never written to: the faults are in overlays of go test.
// Nearly all of them are compiled into one test binary, where an environment variable
// switches one on; those that cannot be switched have a binary each.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// options are the command's flags.
type options struct {
	dir     string
	by      string         // whose tests run: dir, or another
	n       int            // how many mutants to draw; 0: all
	seed    int64          // of the draw
	files   []string       // empty: all of the package
	mutants []string       // their ids; empty: no choice
	run     *regexp.Regexp // which tests; nil: all
	skip    *regexp.Regexp // which tests not; nil: none
	quick   time.Duration  // tests that take longer do not run; 0: all do
	jobs    int
	verbose bool
}

func main() {
	o, err := parseOptions(os.Args[1:])
	if err == nil {
		err = mutate(o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// parseOptions reads the flags and the directory.
func parseOptions(args []string) (o options, err error) {
	flags := flag.NewFlagSet("mutate", flag.ContinueOnError)
	flags.IntVar(&o.n, "n", 0, "draw `N` mutants; 0 takes all")
	flags.Int64Var(&o.seed, "seed", 1, "of the draw")
	flags.IntVar(&o.jobs, "p", runtime.NumCPU(), "test that many mutants at once")
	flags.DurationVar(&o.quick, "quick", 0, "run only tests that take no longer; 0 runs all")
	flags.BoolVar(&o.verbose, "v", false, "print the killed mutants, too, with the test that saw them")
	by := flags.String("by", "", "run the tests of the package in `DIR`; if not set, the package's own")
	files := flags.String("files", "", "mutate only these files, `a.go,b.go`")
	ids := flags.String("mutants", "", "take only these mutants, `id,id`")
	run := flags.String("run", "", "run only tests that match `REGEXP`")
	skip := flags.String("skip", "", "do not run tests that match `REGEXP`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 1 {
		return o, fmt.Errorf("want one directory, not %d", flags.NArg())
	}
	if o.dir, err = filepath.Abs(flags.Arg(0)); err != nil {
		return o, err
	}
	if o.by, err = filepath.Abs(cmp.Or(*by, o.dir)); err != nil {
		return o, err
	}
	o.files, o.mutants = list(*files), list(*ids)
	if o.run, err = pattern(*run); err != nil {
		return o, err
	}
	o.skip, err = pattern(*skip)
	return o, err
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return c == ',' || c == ' ' })
}

func pattern(s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, nil
	}
	return regexp.Compile(s)
}

// mutate draws the mutants, tests them and prints the result to w.
func mutate(o options, w io.Writer) error {
	p, err := readPackage(o.dir)
	if err != nil {
		return err
	}
	all := p.mutants()
	if err := excuse(all, filepath.Join(o.dir, equivalents)); err != nil {
		return err
	}
	drawn := choose(all, o)
	if len(drawn) == 0 {
		return errors.New("there is nothing to mutate")
	}
	work, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := bench{pkg: p, work: work, options: o, out: w}
	if err := b.prepare(drawn); err != nil {
		return err
	}
	b.testAll(drawn)
	report(w, drawn)
	return nil
}

// equivalents is the file that lists the mutants which no test can see, and why: the id,
// what the mutant is, and the reason, with tabs between.
const equivalents = "testdata/equivalent_mutants.tsv"

// excuse marks the mutants that are on the list. An entry that is no mutant any more is
// an error.
func excuse(all []*mutant, list string) error {
	text, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	byID := map[string]*mutant{}
	for _, m := range all {
		byID[m.id] = m
	}
	var stale []error
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		if len(fields) != 3 {
			return fmt.Errorf("%s: want an id, what it is and a reason: %q", list, line)
		}
		if m := byID[fields[0]]; m != nil {
			m.fate, m.reason = fateEquivalent, fields[2]
		} else {
			stale = append(stale, fmt.Errorf("%s: there is no such mutant any more: %s %s", list, fields[0], fields[1]))
		}
	}
	return errors.Join(stale...)
}

// choose returns the mutants that the options ask for, in the order of the source.
func choose(all []*mutant, o options) []*mutant {
	chosen := slices.DeleteFunc(all, func(m *mutant) bool {
		return len(o.files) > 0 && !slices.Contains(o.files, m.file) ||
			len(o.mutants) > 0 && !slices.Contains(o.mutants, m.id)
	})
	if o.n > 0 && o.n < len(chosen) {
		rand.New(rand.NewSource(o.seed)).Shuffle(len(chosen), func(i, j int) {
			chosen[i], chosen[j] = chosen[j], chosen[i]
		})
		chosen = chosen[:o.n]
		slices.SortFunc(chosen, inSource)
	}
	return chosen
}

// report prints the living mutants and the figures.
func report(w io.Writer, tested []*mutant) {
	var killed, lived, broken, excused int
	fmt.Fprintln(w)
	for _, m := range tested {
		switch m.fate {
		case fateKilled:
			killed++
		case fateNotCompiled:
			broken++
		case fateEquivalent:
			excused++
		default:
			lived++
			fmt.Fprintln(w, m)
		}
	}
	percent := 100.0
	if killed+lived > 0 {
		percent = 100 * float64(killed) / float64(killed+lived)
	}
	fmt.Fprintf(w, "%d mutants: %d killed, %d lived, %d equivalent, %d not compiled: %.1f %%\n",
		len(tested), killed, lived, excused, broken, percent)
}

// took is a duration to be read.
func took(since time.Time) time.Duration { return time.Since(since).Round(time.Second) }
