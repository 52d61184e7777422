// Bench measures ganbauth beside what else an application could do, and prints
// docs/performance.md:
//
//	go run . -o ../docs
//
// With -o it also writes that page, its plots, and what benchstat reads. Every number
// comes from processes of their own that run one after the other; what is compared is
// measured in turns within a process. It takes a quarter of an hour; -quick takes a few
// minutes, for a look.
package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/ganbauth/ganbauth"
)

// main measures everything and writes the page, or does one job of that in a process of its
// own.
func main() {
	if len(os.Args) > 1 {
		if job, ok := jobs[os.Args[1]]; ok {
			check(json.NewEncoder(os.Stdout).Encode(job(os.Args[2:])))
			return
		}
		if os.Args[1] == "bank" {
			serveBank(must(time.ParseDuration(os.Args[2])))
			return
		}
	}
	quick := flag.Bool("quick", false, "fewer processes and rounds")
	out := flag.String("o", "", "folder to write performance.md and performance/ into")
	flag.Parse()
	e := full
	if *quick {
		e = brief
	}
	if err := measure(e).write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// jobs are what the processes do.
var jobs = map[string]func(args []string) any{
	"live": func(args []string) any {
		return compare(liveGroups[args[0]](), must(strconv.Atoi(args[1])), batchTime, args[2] == "parallel")
	},
	"instructions": func(args []string) any {
		c := liveGroups["default"]()[must(strconv.Atoi(args[0]))]
		serial(c, must(strconv.Atoi(args[1])))
		return c.name
	},
	"engine": func(args []string) any {
		compare := map[string]func(testing.TB, int) []engineSample{"redis": onRedis, "postgres": onPostgres, "mariadb": onMariaDB}
		return withParts(func(tb testing.TB) []engineSample { return compare[args[0]](tb, must(strconv.Atoi(args[1]))) })
	},
	"sizes": func(args []string) any {
		return withParts(func(tb testing.TB) []sizeSample { return sizes(tb, args[0], numbers(args[1:])) })
	},
	"near": func(args []string) any {
		return withParts(func(tb testing.TB) float64 { return nearMemory(tb, numbers(args)[0]) })
	},
	"engineherds": func(args []string) any {
		return withParts(func(tb testing.TB) []herdSample {
			n := numbers(args[1:])
			e := engines[args[0]](tb)
			samples := herds(herders()[:2], e.store, n[0], n[1])
			for i := range samples {
				samples[i].Engine = e.name
			}
			return samples
		})
	},
	"refused": func(args []string) any {
		program, browser := refused(must(strconv.Atoi(args[0])))
		return [][]sample{program, browser}
	},
	"login": func(args []string) any { return compare(logins(), must(strconv.Atoi(args[0])), batchTime, false) },
	"storm": func(args []string) any {
		return storm(refreshers[must(strconv.Atoi(args[0]))], 1000, must(time.ParseDuration(args[1])))
	},
	"herds": func(args []string) any {
		n := numbers(args)
		return herds(herders(), ganbauth.NewMemoryStore(), n[0], n[1])
	},
	"memory": func(args []string) any { return sessionMemory(must(strconv.Atoi(args[0])), args[1] == "connected") },
	"leftovers": func(args []string) any {
		refreshed, begun := leftovers(must(strconv.Atoi(args[0])))
		return []float64{refreshed, begun}
	},
	"latency": func(args []string) any {
		l := load{users: 10_000, rate: 1_000, lead: 5 * time.Second, long: must(time.ParseDuration(args[1]))}
		live, refreshing := l.latencies(args[0] == "expire")
		return []latencySample{live, refreshing}
	},
}

func numbers(words []string) (all []int) {
	for _, w := range words {
		all = append(all, must(strconv.Atoi(w)))
	}
	return all
}

// child runs a job in a process of its own.
func child[T any](job string, args ...any) (result T) {
	words := []string{job}
	for _, a := range args {
		words = append(words, fmt.Sprint(a))
	}
	fmt.Fprintln(os.Stderr, strings.Join(words, " "))
	cmd := exec.Command(must(os.Executable()), words...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	check(err)
	check(json.Unmarshal(out, &result))
	return result
}

func anys[T any](values []T) (all []any) {
	for _, v := range values {
		all = append(all, v)
	}
	return all
}

// repeated runs a job several times and returns the medians, and what each run has seen.
func repeated(times int, job string, args ...any) (medians []sample, runs [][]sample) {
	for range times {
		runs = append(runs, child[[]sample](job, args...))
	}
	return mediansOf(runs), runs
}

// mediansOf returns the median of each sample over the runs.
func mediansOf(runs [][]sample) (medians []sample) {
	for i, s := range runs[0] {
		of := func(field func(sample) float64) float64 {
			var values []float64
			for _, r := range runs {
				values = append(values, field(r[i]))
			}
			return median(values)
		}
		medians = append(medians, sample{
			s.Name, of(func(s sample) float64 { return s.Nanoseconds }), of(func(s sample) float64 { return s.Ratio }),
			of(func(s sample) float64 { return s.Bytes }), of(func(s sample) float64 { return s.Allocs }),
		})
	}
	return medians
}

// instructions are those of one of n requests, counted by valgrind, which repeats well
// where time does not. They are 0 where there is no valgrind.
func instructions(contender, n int) float64 {
	if _, err := exec.LookPath("valgrind"); err != nil || n == 0 {
		return 0
	}
	count := func(n int) float64 {
		fmt.Fprintln(os.Stderr, "valgrind instructions", contender, n)
		cmd := exec.Command("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
			must(os.Executable()), "instructions", strconv.Itoa(contender), strconv.Itoa(n))
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off")
		var log bytes.Buffer
		cmd.Stderr = &log
		check(cmd.Run())
		m := regexp.MustCompile(`I +refs: +([\d,]+)`).FindSubmatch(log.Bytes())
		return must(strconv.ParseFloat(strings.ReplaceAll(string(m[1]), ",", ""), 64))
	}
	const warm = 200
	return (count(warm+n) - count(warm)) / float64(n)
}

// results are what the page is made of.
type results struct {
	Machine                                string
	Processes                              int
	Default, Parallel, CBOR, Idle          []sample
	Instructions                           []float64
	Redis, Postgres, MariaDB               []engineSample
	RefusedProgram, RefusedBrowser, Logins []sample
	AtOnce, Spread                         []stormSample
	Herds                                  []herdSample
	Memory                                 []memoryRow
	Refreshed, Begun                       float64
	Latencies                              []latencySample
	LatencyRatio                           float64 // of the p99s, the median of the pairs
	Sizes                                  []sizeSample
	EngineHerds                            []herdSample
	Near                                   float64

	benchstat string
}

// OfLive is what a request costs beside one of a logged in user with sessions alone, the
// page's first row.
func (r results) OfLive(s sample) float64 { return s.Nanoseconds / r.Default[0].Nanoseconds }

type memoryRow struct {
	Sessions         int
	Alone, Connected float64
}

// effort is how long to measure.
type effort struct {
	processes, rounds int
	sessions          []int
	tokens            []int         // in an engine
	users, herds      int           // whose tokens end together, and how often
	pairs             int           // of loads, with and without expiries
	long              time.Duration // each load
	counted           int           // requests whose instructions are counted
}

var (
	full  = effort{processes: 10, rounds: 40, sessions: []int{100_000, 1_000_000}, tokens: []int{10_000, 100_000, 1_000_000}, users: 10_000, herds: 5, pairs: 5, long: 20 * time.Second, counted: 2000}
	brief = effort{processes: 2, rounds: 10, sessions: []int{10_000, 100_000}, tokens: []int{1_000, 10_000}, users: 1_000, herds: 3, pairs: 1, long: 3 * time.Second, counted: 2000}
)

// measure does every job in turn.
func measure(e effort) (r results) {
	r.Machine, r.Processes = machine(), e.processes
	live := func(group, mode string) []sample {
		medians, runs := repeated(e.processes, "live", group, e.rounds, mode)
		for _, run := range runs {
			for _, s := range run {
				name := regexp.MustCompile(`[^\w./-]+`).ReplaceAllString(strings.ReplaceAll(s.Name, "*", ""), "_")
				r.benchstat += fmt.Sprintf("BenchmarkLive/%s/%s/%s 1 %.0f ns/op %.0f B/op %.0f allocs/op\n", group, mode, name, s.Nanoseconds, s.Bytes, s.Allocs)
			}
		}
		return medians
	}
	r.Default, r.Parallel = live("default", "serial"), live("default", "parallel")
	r.CBOR, r.Idle = live("cbor", "serial"), live("idle", "serial")
	for i := range r.Default[:4] {
		r.Instructions = append(r.Instructions, instructions(i, e.counted))
	}
	r.Redis, r.Postgres = engineMedians("redis", e.processes, e.rounds), engineMedians("postgres", e.processes, e.rounds)
	r.MariaDB = engineMedians("mariadb", e.processes, e.rounds)
	var programs, browsers [][]sample
	for range e.processes {
		both := child[[2][]sample]("refused", e.rounds)
		programs, browsers = append(programs, both[0]), append(browsers, both[1])
	}
	r.RefusedProgram, r.RefusedBrowser = mediansOf(programs), mediansOf(browsers)
	r.Logins, _ = repeated(e.processes, "login", e.rounds)
	for i := range refreshers {
		r.AtOnce = append(r.AtOnce, child[stormSample]("storm", i, time.Duration(0)))
		r.Spread = append(r.Spread, child[stormSample]("storm", i, 200*time.Millisecond))
	}
	r.Herds = child[[]herdSample]("herds", e.users, e.herds)
	for _, engine := range []string{"redis", "rueidis", "postgres", "mariadb"} {
		users := e.users
		if engine == "postgres" || engine == "mariadb" {
			users /= 5 // the store ends a call after seconds, and each commit waits for the disk
		}
		r.EngineHerds = append(r.EngineHerds, child[[]herdSample]("engineherds", engine, users, e.herds)...)
		if engine != "rueidis" { // it fills Redis as goredisstore does
			r.Sizes = append(r.Sizes, child[[]sizeSample]("sizes", append([]any{engine}, anys(e.tokens)...)...)...)
		}
	}
	r.Near = child[float64]("near", e.tokens[0])
	for _, n := range e.sessions {
		r.Memory = append(r.Memory, memoryRow{n, child[float64]("memory", n, "alone"), child[float64]("memory", n, "connected")})
	}
	rest := child[[2]float64]("leftovers", e.sessions[0])
	r.Refreshed, r.Begun = rest[0], rest[1]
	r.Latencies, r.LatencyRatio = latencyMedians(e.pairs, e.long)
	return r
}

//go:embed page.md.tmpl
var page string

// write prints the page, and writes it with what belongs to it into the folder, if there
// is one.
func (r results) write(out string) error {
	t, err := template.New("page").Funcs(formats).Parse(page)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, r); err != nil {
		return err
	}
	if _, err := os.Stdout.Write(text.Bytes()); err != nil || out == "" {
		return err
	}
	folder := filepath.Join(out, "performance")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "performance.md"), text.Bytes(), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "benchstat.txt"), []byte(r.benchstat), 0o644); err != nil {
		return err
	}
	return plots(r, folder)
}

// engineMedians measures an engine in several processes and returns the medians.
func engineMedians(engine string, processes, rounds int) []engineSample {
	var runs [][]sample
	var last []engineSample
	for range processes {
		last = child[[]engineSample]("engine", engine, rounds)
		var samples []sample
		for _, s := range last {
			samples = append(samples, s.Sample)
		}
		runs = append(runs, samples)
	}
	for i, s := range mediansOf(runs) {
		last[i].Sample = s
	}
	return last
}

// latencyMedians runs the load with and without expiries in turns.
func latencyMedians(pairs int, long time.Duration) (medians []latencySample, ratio float64) {
	var ratios []float64
	runs := make([][]latencySample, 3)
	for range pairs {
		quiet := child[[2]latencySample]("latency", "quiet", long)
		ends := child[[2]latencySample]("latency", "expire", long)
		ratios = append(ratios, float64(ends[0].P99)/float64(quiet[0].P99))
		for i, s := range []latencySample{quiet[0], ends[0], ends[1]} {
			runs[i] = append(runs[i], s)
		}
	}
	for _, run := range runs {
		of := func(field func(latencySample) time.Duration) time.Duration {
			var values []float64
			for _, s := range run {
				values = append(values, float64(field(s)))
			}
			return time.Duration(median(values))
		}
		s := run[0]
		s.P50 = of(func(s latencySample) time.Duration { return s.P50 })
		s.P99 = of(func(s latencySample) time.Duration { return s.P99 })
		s.P999 = of(func(s latencySample) time.Duration { return s.P999 })
		for _, other := range run[1:] {
			s.Requests, s.Failed, s.TokenRequests = s.Requests+other.Requests, s.Failed+other.Failed, s.TokenRequests+other.TokenRequests
		}
		medians = append(medians, s)
	}
	return medians, median(ratios)
}

var formats = template.FuncMap{
	"us":    func(ns float64) string { return fmt.Sprintf("%.1f µs", ns/1000) },
	"ratio": func(r float64) string { return fmt.Sprintf("%.2f", r) },
	"n":     func(v float64) string { return fmt.Sprint(int64(math.Round(v))) }, // no -0
	"short": func(d time.Duration) string {
		if d < 10*time.Millisecond {
			return d.Round(time.Microsecond).String()
		}
		return d.Round(time.Millisecond).String()
	},
	"per":   func(values []float64, i int) float64 { return values[i] / values[0] },
	"sub":   func(a, b float64) float64 { return a - b },
	"whole": thousands,
	"yes": func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	},
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// machine names what the numbers were measured on.
func machine() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	cpu := "an unknown processor"
	if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(info); m != nil {
		cpu = string(m[1])
	}
	return fmt.Sprintf("%s: %s, %d cores, %s", time.Now().Format(time.DateOnly), cpu, runtime.NumCPU(), runtime.Version())
}
