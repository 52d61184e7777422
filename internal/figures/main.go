// Figures runs the commands in the last column of a page's tables and writes what their
// tests have measured into the column before:
//
//	go run ./internal/figures docs/reliability.md
//
// A test tells what it has measured with t.Attr("measured", …).
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/figures PAGE")
		os.Exit(2)
	}
	if err := measure(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

var command = regexp.MustCompile("^ `(.*go test .*)` $")

// measure runs the commands in the last column of the page's tables, and writes what they
// print into the column before it.
func measure(page string) error {
	data, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "Measured on ") {
			lines[i] = fmt.Sprintf("Measured on %s: %s, %d cores, %s.", time.Now().Format(time.DateOnly), cpu(), runtime.NumCPU(), runtime.Version())
		}
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		c := command.FindStringSubmatch(cells[len(cells)-2])
		if c == nil {
			continue
		}
		measured, err := run(c[1])
		if err != nil {
			return fmt.Errorf("%s: %w", c[1], err)
		}
		fmt.Println(c[1], "\n\t", measured)
		cells[len(cells)-3] = " " + measured + " "
		lines[i] = strings.Join(cells, "|")
	}
	return os.WriteFile(page, []byte(strings.Join(lines, "\n")), 0o644)
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
