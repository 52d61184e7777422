package ganbauth_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README's lines are the manual's, and compile as pasted.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 2)
	quickStart, box := blocks[0][1], blocks[1][1]

	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	inDoc := regexp.MustCompile(`(?m)^//\t?`).ReplaceAllString(string(doc), "")
	require.Contains(t, inDoc, quickStart)

	program := `package main

import (
	"net/http"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func server(mux *http.ServeMux, balance http.HandlerFunc, addr, id, secret, salt string) {
` + quickStart + `_ = err
}

func test() {
` + box + `_, _ = connector, err
}

func main() {}
`
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o600))
	out, err := exec.Command("go", "build", "-o", os.DevNull, file).CombinedOutput()
	require.NoError(t, err, string(out))

	for _, name := range regexp.MustCompile("`bank\\.(\\w+)").FindAllStringSubmatch(string(readme), -1) {
		require.NoError(t, exec.Command("go", "doc", "Kit."+name[1]).Run(), "the README names Kit.%s", name[1])
	}
}

// What the pages link to, and the tests that they name, are there.
func TestDocs(t *testing.T) {
	source := &strings.Builder{}
	var pages []string
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			pages = append(pages, path)
		case filepath.Ext(path) == ".go":
			data, err := os.ReadFile(path)
			source.Write(data)
			return err
		}
		return nil
	}))
	require.NotEmpty(t, pages)
	test := regexp.MustCompile(`\b((?:Test|Fuzz|Example|Benchmark)[A-Z_]\w*)((?:/[\w.,-]+)*)`)
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	for _, page := range pages {
		data, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range test.FindAllStringSubmatch(string(data), -1) {
			require.True(t, strings.Contains(source.String(), "func "+m[1]+"("), "%s names %s", page, m[0])
			for _, sub := range strings.FieldsFunc(m[2], func(r rune) bool { return r == '/' }) {
				spaced := strings.ReplaceAll(sub, "_", " ") // as it was, before package testing wrote it
				require.True(t, strings.Contains(source.String(), spaced+`"`) || strings.Contains(source.String(), sub+`"`),
					"%s names %s", page, m[0])
			}
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if !strings.Contains(m[1], "://") {
				_, err := os.Stat(filepath.Join(filepath.Dir(page), m[1]))
				require.NoError(t, err, page)
			}
		}
	}
}
