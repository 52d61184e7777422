// Figures runs the commands in the last column of a page's tables and writes what their
// tests have measured into the column before:
//
//	go run ./internal/figures docs/reliability.md
//	go run ./internal/figures docs/reliability.md 'TestGuard|TestKeepAlive'
//
// With a pattern, only the commands that match are run. A test tells what it has measured
// with t.Attr("measured", …). The numbers then go to the page of the same name in
// docs/ja, which has the same rows. For that alone, without measuring, name that page:
//
//	go run ./internal/figures docs/ja/reliability.md
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/figures PAGE [PATTERN]")
		os.Exit(2)
	}
	if err := figures(os.Args[1], regexp.MustCompile(strings.Join(os.Args[2:], ""))); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// figures measures page and carries the numbers to the page in Japanese, or only carries
// them if that is the page that is named.
func figures(page string, matching *regexp.Regexp) error {
	dir, name := filepath.Split(page)
	if filepath.Base(dir) == "ja" {
		return carry(filepath.Join(dir, "..", name), page)
	}
	if err := measure(page, matching); err != nil {
		return err
	}
	translated := filepath.Join(dir, "ja", name)
	if _, err := os.Stat(translated); err != nil {
		return nil
	}
	return carry(page, translated)
}

var command = regexp.MustCompile("^ `(.*go test .*)` $")

// measure runs those commands in the last column of the page's tables that match, and
// writes what they print into the column before it.
func measure(page string, matching *regexp.Regexp) error {
	data, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	date := 0 // the line with the date of the table
	for i, line := range lines {
		if strings.HasPrefix(line, "Measured on ") {
			date = i
		}
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		c := command.FindStringSubmatch(cells[len(cells)-2])
		if c == nil || !matching.MatchString(c[1]) {
			continue
		}
		measured, err := run(c[1])
		if err != nil {
			return fmt.Errorf("%s: %w", c[1], err)
		}
		fmt.Println(c[1], "\n\t", measured)
		cells[len(cells)-3] = " " + measured + " "
		lines[i] = strings.Join(cells, "|")
		lines[date] = fmt.Sprintf("Measured on %s: %s, %d cores, %s.", time.Now().Format(time.DateOnly), cpu(), runtime.NumCPU(), runtime.Version())
		if err := os.WriteFile(page, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A number, with the unit that stands at it. In the translated page, units are words.
var (
	number   = regexp.MustCompile(`(\d+(?:,\d{3})*(?:[hm]\d+)*(?:\.\d+)?)(ms|µs|h|m|s)?`)
	japanese = regexp.MustCompile(`\d+(?:,\d{3})*(?:(?:時間|分)\d+)*(?:\.\d+)?(ミリ秒|マイクロ秒|時間|分|秒)?`)
	units    = strings.NewReplacer("ms", "ミリ秒", "µs", "マイクロ秒", "h", "時間", "m", "分", "s", "秒")
)

// carry writes the figures of page into the same rows of the translated page: number by
// number, in their order. The words between them stay.
func carry(page, translated string) error {
	from, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	to, err := os.ReadFile(translated)
	if err != nil {
		return err
	}
	measured := map[string][]string{}
	var dates []string // of the lines "Measured on"
	for line := range strings.SplitSeq(string(from), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 3 && command.MatchString(cells[len(cells)-2]) {
			measured[cells[len(cells)-2]] = number.FindAllString(cells[len(cells)-3], -1)
		}
		if after, ok := strings.CutPrefix(line, "Measured on "); ok {
			dates = append(dates, strings.TrimSuffix(after, "."))
		}
	}
	lines := strings.Split(string(to), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "測定環境：") && len(dates) > 0 {
			lines[i], dates = "測定環境："+dates[0], dates[1:]
		}
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !command.MatchString(cells[len(cells)-2]) {
			continue
		}
		figures := measured[cells[len(cells)-2]]
		if n := len(japanese.FindAllString(cells[len(cells)-3], -1)); n != len(figures) {
			return fmt.Errorf("%s has %d figures, not %d: %s", translated, n, len(figures), line)
		}
		cells[len(cells)-3] = japanese.ReplaceAllStringFunc(cells[len(cells)-3], func(old string) string {
			next := figures[0]
			figures = figures[1:]
			if number.FindStringSubmatch(next)[2] == "" {
				return next + japanese.FindStringSubmatch(old)[1] // a word that stays
			}
			return units.Replace(next)
		})
		lines[i] = strings.Join(cells, "|")
	}
	return os.WriteFile(translated, []byte(strings.Join(lines, "\n")), 0o644)
}

// run runs one go test command and returns what its tests have measured, as attributes of
// that name.
func run(command string) (measured string, err error) {
	cmd := exec.Command("sh", "-c", strings.Replace(command, " .", " -json -count=1 .", 1))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	var values []string
	for scanner := bufio.NewScanner(bytes.NewReader(out)); scanner.Scan(); {
		var event struct{ Action, Key, Value string }
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			return "", err
		}
		if event.Action == "attr" && event.Key == "measured" {
			values = append(values, event.Value)
		}
	}
	if len(values) == 0 {
		return "", fmt.Errorf("no test has measured anything: %s", out)
	}
	return strings.Join(values, "; "), nil
}

func cpu() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	_, after, _ := strings.Cut(string(data), "model name\t: ")
	model, _, _ := strings.Cut(after, "\n")
	return model
}
