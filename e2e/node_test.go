package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/testenv"
)

// nodeModules installs what package.json names where it is not there yet, and returns the
// Node.js that came with it.
func nodeModules(t *testing.T) (node string) {
	t.Helper()
	testenv.Needs(t, "npm")
	node, err := installed()
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("SKIP: npm cannot install:", err)
	}
	require.NoError(t, err)
	return node
}

var installed = sync.OnceValues(func() (node string, err error) {
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		return "", err
	}
	const stamp = "node_modules/.lock"
	if was, _ := os.ReadFile(stamp); !bytes.Equal(was, lock) {
		if out, err := exec.Command("npm", "ci", "--no-audit", "--no-fund").CombinedOutput(); err != nil {
			return "", fmt.Errorf("npm ci: %w: %s", err, out)
		}
		if err := os.WriteFile(stamp, lock, 0o600); err != nil {
			return "", err
		}
	}
	found, err := filepath.Glob("node_modules/node-*/bin/node")
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("npm ci left %d Node.js: %v", len(found), err)
	}
	return filepath.Abs(found[0])
})
