package main

import (
	"go/format"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDraw holds what is drawn from each kind of statement and expression.
func TestDraw(t *testing.T) {
	tests := []struct {
		name string
		body string   // of func f(a, b int, err error) (int, error)
		want []string // kind: old => new
	}{
		{"condition", "if a < b { g() }", []string{
			"negated: a < b => !(a < b)", "never: a < b => false && (a < b)", "always: a < b => true || (a < b)",
			"operator turned: a < b => a <= b", "call removed: g() => nothing"}},
		{"equal", "for a == b { }", []string{
			"never: a == b => false && (a == b)", "always: a == b => true || (a == b)", "operator turned: a == b => a != b"}},
		{"not", "_ = !(a > b)", []string{
			"assignment removed: _ = !(a > b) => nothing", "not removed: !(a > b) => ((a > b))", "operator turned: a > b => a >= b"}},
		{"both", "x := p && q", []string{
			"operator turned: p && q => p || q", "operand removed: p && q => p", "operand removed: p && q => q"}},
		{"arithmetic", "a -= 2*b", []string{
			"assignment removed: a -= 2*b => nothing", "operator turned: 2*b => 2 / b", "constant changed: 2 => 3"}},
		{"errors", "x, err := g()", []string{"error dropped: x, err := g() => x, err := g(); err = nil"}},
		{"values", "return a, err", []string{
			"value returned: return a, err => return *new(int), err", "value returned: return a, err => return a, nil"}},
		{"zero values stay", "return 0, nil", []string{"constant changed: 0 => 1"}},
		{"however they are written", "return *new(int), nil", nil},
		{"values of a call", "return g()", []string{"value returned: return g() => return *new(int), nil"}},
		{"a function inside", "h := func() bool { return a > b }", []string{
			"value returned: return a > b => return !(a > b)", "operator turned: a > b => a >= b"}},
		{"statements", "defer g(); go g(); c <- a; a++", []string{
			"defer removed: defer g() => nothing", "call removed: go g() => nothing",
			"send removed: c <- a => nothing", "assignment removed: a++ => nothing"}},
		{"loops", "for { if true { continue }; break }", []string{
			"negated: true => !(true)", "never: true => false && (true)", "always: true => true || (true)",
			"constant changed: true => false", "continue removed: continue => nothing", "break removed: break => nothing"}},
		{"branches", "switch a { case b: g(); default: }", []string{
			"branch removed: case b: g() => nothing", "call removed: g() => nothing"}},
		{"branches with conditions", "switch { case a < b: }", []string{
			"negated: a < b => !(a < b)", "never: a < b => false && (a < b)", "always: a < b => true || (a < b)",
			"operator turned: a < b => a <= b"}},
		{"strings", `s := "Location" + ""`, []string{
			`constant changed: "Location" => ""`, `constant changed: "" => "mutant"`}},
		{"messages", `fmt.Println("Location"); k.say(ctx, "key", "value"); x := "the user"; return 0, errors.New("x")`, []string{
			`constant changed: 0 => 1`, `value returned: return 0, errors.New("x") => return 0, nil`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := parse(t, "func f(a, b int, err error) (int, error) {\n"+test.body+"\n}")
			var got []string
			for _, m := range f.mutants() {
				got = append(got, m.kind+": "+short(m.old)+" => "+short(orNothing(m.new)))
			}
			require.ElementsMatch(t, test.want, got)
		})
	}
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// parse returns the only file of a package with these declarations.
func parse(t *testing.T, decls string) *source {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\n"+decls), 0o600))
	p, err := readPackage(dir)
	require.NoError(t, err)
	require.Len(t, p.files, 1)
	return p.files[0]
}

// TestIDs holds that a mutant keeps its id when other functions change, and that no two
// have the same.
func TestIDs(t *testing.T) {
	const f = "func f(a, b int) bool { if a < b { return a < b }; return a < b }\n"
	ids := func(decls string) (ids []string) {
		for _, m := range parse(t, decls).mutants() {
			if strings.Contains(m.old, "a < b") {
				ids = append(ids, m.id)
			}
		}
		return ids
	}
	before := ids(f)
	require.Equal(t, before, ids("func g() int { return 1 }\n\n"+f))
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(before))), 8)
}

// TestSwitched holds that a file with all of its mutants is Go and has the same lines.
func TestSwitched(t *testing.T) {
	f := parse(t, `
func f(a, b int) (c int, err error) {
	if a < b && b < 3 || // a comment
		a == b {
		c, err = g(func() bool { return a > b })
		return c, err
	}
	defer h("Location")
	for !(a > b) {
		break
	}
	return 0, err
}`)
	all := f.mutants()
	for i, m := range all {
		m.number = i + 1
	}
	text := f.switched(all)
	_, err := format.Source(text)
	require.NoError(t, err, "%s", text)
	require.Equal(t, strings.Count(string(f.text), "\n"), strings.Count(string(text), "\n"), "%s", text)
	require.Contains(t, string(text), "if !mutant(")
	for _, m := range all {
		_, err := format.Source(f.alone(m))
		require.NoError(t, err, m)
	}
}
