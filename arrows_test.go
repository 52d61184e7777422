package ganbauth_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// arrow is a name that one file of the root uses and another declares.
type arrow struct{ from, to, name string }

// arrows returns the names that the root's files use of each other, methods and fields
// included.
func arrows(t *testing.T) []arrow {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if !strings.HasSuffix(path, "_test.go") {
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	// Other packages are not loaded: what is missing is their names', which do not matter
	// here.
	conf := types.Config{Importer: emptyPackages{}, Error: func(error) {}}
	pkg, _ := conf.Check("ganbauth", fset, files, info)
	found := map[arrow]bool{}
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg || !obj.Pos().IsValid() {
			continue
		}
		_, isVar := obj.(*types.Var)
		if obj.Parent() != pkg.Scope() && obj.Parent() != nil && isVar {
			continue // a local variable or a parameter
		}
		from, to := fset.Position(id.Pos()).Filename, fset.Position(obj.Pos()).Filename
		if from != to {
			found[arrow{from, to, obj.Name()}] = true
		}
	}
	return slices.Collect(maps.Keys(found))
}

type emptyPackages struct{}

func (emptyPackages) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, regexp.MustCompile(`(/v\d+)?$`).ReplaceAllString(filepath.Base(path), ""))
	p.MarkComplete()
	return p, nil
}

// TestArrows holds the floors of docs/architecture.md: no file uses a name that a file
// above it declares. On one floor the files stand in the order of the list.
func TestArrows(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	height := map[string]int{}
	floors := regexp.MustCompile(`(?s)## Floors\n\n(.*?)\n\n`).FindStringSubmatch(string(page))
	require.NotNil(t, floors)
	for _, row := range strings.Split(floors[1], "\n")[2:] {
		for _, file := range strings.Split(strings.Split(row, "|")[2], ",") {
			height[strings.TrimSpace(file)+".go"] = -len(height) - 1
		}
	}
	pairs := map[[2]string]bool{}
	for _, m := range regexp.MustCompile("(?m)`(\\w+\\.go)` and `(\\w+\\.go)`[.,;]").FindAllStringSubmatch(string(page), -1) {
		pairs[[2]string{m[1], m[2]}], pairs[[2]string{m[2], m[1]}] = true, true
	}
	require.Len(t, pairs, 2)

	all := arrows(t)
	require.Greater(t, len(all), 300, "names were looked at")
	used := map[string]bool{"doc.go": true}
	for _, a := range all {
		used[a.from], used[a.to] = true, true
		require.NotZero(t, height[a.from], "%s is on no floor of docs/architecture.md", a.from)
		require.NotZero(t, height[a.to], "%s is on no floor of docs/architecture.md", a.to)
		if height[a.from] < height[a.to] && !pairs[[2]string{a.from, a.to}] {
			t.Errorf("%s looks up: it uses %s, which %s declares, a file above it", a.from, a.name, a.to)
		}
	}
	for file := range height {
		_, err := os.Stat(file)
		require.True(t, err == nil && used[file], "docs/architecture.md has %s", file)
	}
}
