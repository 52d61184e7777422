package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Each case holds in each engine, and whether an application keeps its users in a session or asks for a key, whose
// cookie may be Lax or Strict.
var cases = []struct {
	name string
	test func(*world)
}{
	{"connect", testConnect},
}

func TestEngines(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			b := e.start(t, true)
			for _, c := range cases {
				for _, m := range modes {
					t.Run(c.name+", "+m.name, func(t *testing.T) { c.test(newWorld(t, b, m)) })
				}
			}
		})
	}
}

func testConnect(w *world) {
	v := w.connected()
	v.open(w.app + "/p/2")
	v.see("page 2, cart full")
	require.Equal(w, w.app+"/p/2", v.location())
}
