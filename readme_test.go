package ganbauth_test

import (
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
	for _, link := range regexp.MustCompile(`\]\(([^)h][^)]*)\)`).FindAllStringSubmatch(string(readme), -1) {
		_, err := os.Stat(strings.TrimPrefix(link[1], "./"))
		require.NoError(t, err)
	}
}
