package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// alone returns f with one mutant in it.
func (f *source) alone(m *mutant) []byte {
	return slices.Concat(f.text[:m.from], []byte(m.new), f.text[m.to:])
}

// switched returns f with all of these mutants in it, none of them on. It keeps the lines.
func (f *source) switched(all []*mutant) []byte {
	var mine []*mutant
	for _, m := range all {
		if m.file == f.name && m.switched() {
			mine = append(mine, m)
		}
	}
	slices.SortStableFunc(mine, inSource)
	var b strings.Builder
	f.render(&b, 0, len(f.text), mine)
	return []byte(b.String())
}

// render writes the bytes from..to, with the mutants that lie between, the outer ones
// first.
func (f *source) render(b *strings.Builder, from, to int, mutants []*mutant) {
	for len(mutants) > 0 {
		m := mutants[0]
		inner := 1 // the mutants in m are those that follow it
		for inner < len(mutants) && mutants[inner].from < m.to {
			inner++
		}
		number := strconv.Itoa(m.number)
		b.Write(f.text[from:m.from])
		b.WriteString(strings.ReplaceAll(m.before, "§", number))
		f.render(b, m.from, m.to, mutants[1:inner])
		b.WriteString(strings.ReplaceAll(m.after, "§", number))
		from, mutants = m.to, mutants[inner:]
	}
	b.Write(f.text[from:to])
}

// variable names the environment variable that has the number of the mutant to switch on.
const variable = "GANBAUTH_MUTANT"

// reachedVariable names the one that has the file to which the numbers of the mutants go
// that were reached, each once.
const reachedVariable = "GANBAUTH_MUTANTS_REACHED"

// switchFile returns the file that the switched mutants need beside them.
func switchFile(pkg string) []byte {
	return fmt.Appendf(nil, `package %s

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

var (
	mutantNumber, _   = strconv.Atoi(os.Getenv(%q))
	mutantsReached, _ = os.OpenFile(os.Getenv(%q), os.O_WRONLY|os.O_APPEND, 0)
	mutantsSeen       sync.Map
)

func mutant(n int) bool {
	if mutantsReached != nil {
		if _, again := mutantsSeen.LoadOrStore(n, true); !again {
			fmt.Fprintln(mutantsReached, n)
		}
	}
	return mutantNumber == n
}

func mutantInt(n int) int {
	if mutant(n) {
		return 1
	}
	return 0
}

func mutantString(n int, old, new string) string {
	if mutant(n) {
		return new
	}
	return old
}
`, pkg, variable, reachedVariable)
}
