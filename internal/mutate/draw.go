package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mutant is one small fault: a piece of a file that becomes another one.
type mutant struct {
	id       string
	file     string // its base name
	line     int
	from, to int    // bytes of the file
	kind     string // what was done
	old, new string

	// before and after surround the piece in the binary that has all mutants. The sign §
	// stands for the mutant's number. If both are empty, it needs a binary of its own.
	before, after string
	number        int

	fate   fate
	killer string // the test that saw it
	reason string // why it is on the list
}

type fate int

const (
	fateLived fate = iota
	fateKilled
	fateNotCompiled
	fateEquivalent // it is on the list
)

func (m *mutant) String() string {
	return fmt.Sprintf("%s:%d: %s: %s: %s  =>  %s", m.file, m.line, m.id, m.kind, short(m.old), short(cmp.Or(m.new, "nothing")))
}

func (m *mutant) switched() bool { return m.before != "" || m.after != "" }

// short is a piece of source in one line.
func short(s string) string {
	line := []rune(strings.Join(strings.Fields(s), " "))
	if len(line) > 90 {
		return string(line[:90]) + "…"
	}
	return string(line)
}

func inSource(a, b *mutant) int {
	return cmp.Or(strings.Compare(a.file, b.file), a.from-b.from, b.to-a.to, strings.Compare(a.id, b.id))
}

// sources are the files of a package, without its tests.
type sources struct {
	dir   string
	name  string
	files []*source
}

type source struct {
	name string
	text []byte
	set  *token.FileSet
	tree *ast.File
}

// readPackage parses the package in dir.
func readPackage(dir string) (*sources, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	p := &sources{dir: dir}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		f := &source{name: filepath.Base(name), text: text, set: token.NewFileSet()}
		if f.tree, err = parser.ParseFile(f.set, name, text, 0); err != nil {
			return nil, err
		}
		p.name = f.tree.Name.Name
		p.files = append(p.files, f)
	}
	if len(p.files) == 0 {
		return nil, fmt.Errorf("%s: no Go files", dir)
	}
	return p, nil
}

// mutants returns all mutants of the package.
func (p *sources) mutants() (all []*mutant) {
	for _, f := range p.files {
		all = append(all, f.mutants()...)
	}
	return all
}

// drawer draws the mutants of one file.
type drawer struct {
	*source
	function string           // the declared function that is being read
	results  []*ast.FieldList // of the functions around the node
	constant bool             // below a const
	drawn    []*mutant
}

// mutants returns the mutants of one file.
func (f *source) mutants() []*mutant {
	d := &drawer{source: f}
	for _, decl := range f.tree.Decls {
		d.function = "-"
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			d.function = decl.Name.Name
			if decl.Body == nil {
				continue
			}
			d.inside(decl.Type.Results, decl.Body)
		case *ast.GenDecl:
			if decl.Tok != token.IMPORT {
				d.walk(decl)
			}
		}
	}
	identify(d.drawn)
	slices.SortStableFunc(d.drawn, inSource)
	return d.drawn
}

// identify gives each mutant an id that hangs only on its own function: edits elsewhere in
// the file leave it as it is.
func identify(drawn []*mutant) {
	times := map[string]int{}
	for _, m := range drawn {
		what := strings.Join([]string{m.file, m.id, m.kind, m.old, m.new}, "\x00")
		times[what]++
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", what, times[what]))
		m.id = hex.EncodeToString(sum[:4])
	}
}

// inside walks a function's body.
func (d *drawer) inside(results *ast.FieldList, body *ast.BlockStmt) {
	d.results = append(d.results, results)
	d.walk(body)
	d.results = d.results[:len(d.results)-1]
}

// walk draws the mutants of every node below root.
func (d *drawer) walk(root ast.Node) {
	ast.Inspect(root, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			d.inside(n.Type.Results, n.Body)
			return false
		case *ast.Field, *ast.ArrayType: // tags and lengths
			return false
		case *ast.GenDecl:
			if n.Tok == token.CONST && !d.constant {
				d.constant = true
				d.walk(n)
				d.constant = false
				return false
			}
		case *ast.CallExpr:
			return !isWording(d.oneLine(n.Fun))
		case *ast.BlockStmt:
			d.statements(n.List)
		case *ast.IfStmt:
			d.condition(n.Cond)
		case *ast.ForStmt:
			if n.Cond != nil {
				d.condition(n.Cond)
			}
		case *ast.SwitchStmt:
			d.clauses(n.Body, n.Tag == nil)
		case *ast.TypeSwitchStmt:
			d.clauses(n.Body, false)
		case *ast.SelectStmt:
			d.clauses(n.Body, false)
		case *ast.BinaryExpr:
			d.binary(n)
		case *ast.UnaryExpr:
			if n.Op == token.NOT {
				d.boolean(n, "not removed", "("+d.oneLine(n.X)+")")
			}
		case *ast.Ident:
			d.identifier(n)
		case *ast.BasicLit:
			d.literal(n)
		}
		return true
	})
}

// wording are calls whose arguments are read by people only.
var wording = regexp.MustCompile(`(^|\.)(say|Log|LogAttrs|Debug|Info|Warn|Error|Errorf|New|unavailable|Print\w*|Fprint\w*|Sprint\w*|Panic\w*|panic)$`)

// isWording reports whether a function of that name makes or logs a message. The calls of
// errors.New belong to it, those of sha256.New do not.
func isWording(name string) bool {
	if strings.HasSuffix(name, "New") {
		return name == "errors.New"
	}
	if strings.HasSuffix(name, ".Error") || strings.HasSuffix(name, ".Info") {
		return strings.Contains(strings.ToLower(name), "log")
	}
	return wording.MatchString(name)
}

// oneLine returns the source of a node in one line. A function keeps its lines.
func (d *drawer) oneLine(n ast.Node) string {
	s := string(d.text[d.offset(n.Pos()):d.offset(n.End())])
	if !strings.Contains(s, "\n") {
		return s
	}
	var b bytes.Buffer
	_ = printer.Fprint(&b, d.set, n)
	if s = b.String(); strings.Contains(s, "func(") {
		return s
	}
	return strings.Join(strings.Fields(s), " ")
}

func (d *drawer) offset(p token.Pos) int { return d.set.Position(p).Offset }

// add draws the mutant that has new in place of n.
func (d *drawer) add(n ast.Node, kind, new string) *mutant {
	m := &mutant{
		id: d.function, file: d.name, kind: kind, new: new,
		from: d.offset(n.Pos()), to: d.offset(n.End()), line: d.set.Position(n.Pos()).Line,
	}
	m.old = string(d.text[m.from:m.to])
	for _, other := range d.drawn {
		if other.from == m.from && other.to == m.to && other.new == new {
			return &mutant{} // it is drawn already
		}
	}
	d.drawn = append(d.drawn, m)
	return m
}

// boolean draws a mutant of an expression whose type is bool.
func (d *drawer) boolean(n ast.Expr, kind, new string) {
	m := d.add(n, kind, new)
	if !strings.Contains(new, "\n") && !d.constant {
		m.before, m.after = "(mutant(§) && ("+new+") || !mutant(§) && (", "))"
	}
}

// condition draws the mutants of what decides about a branch.
func (d *drawer) condition(cond ast.Expr) {
	text := d.oneLine(cond)
	b, isBinary := cond.(*ast.BinaryExpr)
	u, isUnary := cond.(*ast.UnaryExpr)
	if !(isBinary && (b.Op == token.EQL || b.Op == token.NEQ)) && !(isUnary && u.Op == token.NOT) {
		d.boolean(cond, "negated", "!("+text+")")
	}
	d.boolean(cond, "never", "false && ("+text+")")
	d.boolean(cond, "always", "true || ("+text+")")
}

// clauses draws a switch or a select without each of its branches.
func (d *drawer) clauses(body *ast.BlockStmt, bools bool) {
	for _, s := range body.List {
		switch c := s.(type) {
		case *ast.CaseClause:
			d.statements(c.Body)
			if bools {
				for _, cond := range c.List {
					d.condition(cond)
				}
			} else if c.List != nil && len(body.List) > 1 {
				d.add(c, "branch removed", "")
			}
		case *ast.CommClause:
			d.statements(c.Body)
			if len(body.List) > 1 {
				d.add(c, "branch removed", "")
			}
		}
	}
}

var turned = map[token.Token]token.Token{
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.LAND: token.LOR, token.LOR: token.LAND,
	token.ADD: token.SUB, token.SUB: token.ADD, token.MUL: token.QUO, token.QUO: token.MUL,
	token.SHL: token.SHR, token.SHR: token.SHL, token.AND: token.OR, token.OR: token.AND, token.REM: token.MUL,
}

// binary draws the mutants of an operator and its operands.
func (d *drawer) binary(n *ast.BinaryExpr) {
	x, y := d.oneLine(n.X), d.oneLine(n.Y)
	op, ok := turned[n.Op]
	if !ok {
		return
	}
	switch new := x + " " + op.String() + " " + y; n.Op {
	case token.LAND, token.LOR:
		d.boolean(n, "operator turned", new)
		d.boolean(n, "operand removed", x)
		d.boolean(n, "operand removed", y)
	case token.LSS, token.LEQ, token.GTR, token.GEQ, token.EQL, token.NEQ:
		d.boolean(n, "operator turned", new)
	default:
		if !strings.Contains(x+y, `"`) { // of strings
			d.add(n, "operator turned", new)
		}
	}
}

func (d *drawer) identifier(n *ast.Ident) {
	if n.Obj != nil {
		return
	}
	switch n.Name {
	case "true":
		d.boolean(n, "constant changed", "false")
	case "false":
		d.boolean(n, "constant changed", "true")
	}
}

// literal draws another number, or another string unless it looks like a message.
func (d *drawer) literal(n *ast.BasicLit) {
	var m *mutant
	switch n.Kind {
	case token.INT:
		v, err := strconv.ParseInt(n.Value, 0, 64)
		if err != nil {
			return
		}
		m = d.add(n, "constant changed", strconv.FormatInt(v+1, 10))
		m.before = "(mutantInt(§) + "
		m.after = ")"
	case token.FLOAT:
		d.add(n, "constant changed", "("+n.Value+" + 1)")
	case token.STRING:
		s, err := strconv.Unquote(n.Value)
		switch {
		case err != nil || isMessage(s):
			return
		case s == "":
			m = d.add(n, "constant changed", `"mutant"`)
		default:
			m = d.add(n, "constant changed", `""`)
		}
		m.before, m.after = "mutantString(§, ", ", "+m.new+")"
	}
	if m != nil && d.constant {
		m.before, m.after = "", ""
	}
}

var words = regexp.MustCompile(`\pL\s\pL|^ganbauth: |[^\x00-\x7f]`)

func isMessage(s string) bool { return words.MatchString(s) }

// statements draws the mutants of a list of statements.
func (d *drawer) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if call, ok := s.X.(*ast.CallExpr); ok && !isWording(d.oneLine(call.Fun)) {
				d.remove(s, "call removed")
			}
		case *ast.AssignStmt:
			if s.Tok != token.DEFINE {
				d.remove(s, "assignment removed")
			}
			d.dropError(s)
		case *ast.IncDecStmt:
			d.remove(s, "assignment removed")
		case *ast.DeferStmt:
			d.remove(s, "defer removed")
		case *ast.GoStmt:
			d.remove(s, "call removed")
		case *ast.SendStmt:
			d.remove(s, "send removed")
		case *ast.BranchStmt:
			if s.Tok == token.BREAK || s.Tok == token.CONTINUE {
				d.remove(s, s.Tok.String()+" removed")
			}
		case *ast.ReturnStmt:
			d.returns(s)
		}
	}
}

func (d *drawer) remove(s ast.Stmt, kind string) {
	m := d.add(s, kind, "")
	m.before, m.after = "if !mutant(§) { ", " }"
}

// dropError forgets an error that a call has returned.
func (d *drawer) dropError(s *ast.AssignStmt) {
	if _, ok := s.Rhs[0].(*ast.CallExpr); !ok || len(s.Rhs) != 1 {
		return
	}
	for _, l := range s.Lhs {
		if id, ok := l.(*ast.Ident); ok && (id.Name == "err" || strings.HasSuffix(id.Name, "Err")) {
			m := d.add(s, "error dropped", string(d.text[d.offset(s.Pos()):d.offset(s.End())])+"; "+id.Name+" = nil")
			m.after = "; if mutant(§) { " + id.Name + " = nil }"
		}
	}
}

// returns draws a return statement with each of its values replaced by a zero value, or a
// bool by the other one.
func (d *drawer) returns(s *ast.ReturnStmt) {
	var types []ast.Expr
	if list := d.results[len(d.results)-1]; list != nil {
		for _, field := range list.List {
			for range max(1, len(field.Names)) {
				types = append(types, field.Type)
			}
		}
	}
	if len(s.Results) == 0 {
		return
	}
	values := make([]string, len(types))
	if len(s.Results) < len(types) { // one call returns all of them
		for i, t := range types {
			values[i] = d.zero(t)
		}
		d.replaceReturn(s, values)
		return
	}
	for i, t := range types {
		for j, r := range s.Results {
			values[j] = d.oneLine(r)
		}
		id, _ := t.(*ast.Ident)
		switch {
		case id != nil && id.Name == "bool":
			values[i] = "!(" + values[i] + ")"
		case isZero(values[i]), values[i] == d.zero(t):
			continue
		default:
			values[i] = d.zero(t)
		}
		d.replaceReturn(s, values)
	}
}

func (d *drawer) replaceReturn(s *ast.ReturnStmt, values []string) {
	new := "return " + strings.Join(values, ", ")
	m := d.add(s, "value returned", new)
	if !strings.Contains(new, "\n") {
		m.before = "if mutant(§) { " + new + " }; "
	}
}

var zeros = regexp.MustCompile(`^(nil|0|""|[\w.]+\{\}|zero|new\(.*\))$`)

func isZero(value string) bool { return zeros.MatchString(value) }

// zero is the zero value of a type as an expression.
func (d *drawer) zero(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.Ident:
		switch t.Name {
		case "error":
			return "nil"
		case "string":
			return `""`
		}
	case *ast.StarExpr, *ast.MapType, *ast.FuncType, *ast.InterfaceType, *ast.ChanType, *ast.ArrayType:
		if a, ok := t.(*ast.ArrayType); !ok || a.Len == nil {
			return "nil"
		}
	}
	return "*new(" + d.oneLine(t) + ")"
}
