package main

import (
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"
)

// sample is what one process has seen of one contender.
type sample struct {
	Name          string
	Nanoseconds   float64 // of one request, the median of the rounds
	Ratio         float64 // to the group's first contender in the same round, the median of the rounds
	Bytes, Allocs float64 // of one request
}

// batchTime is how long a contender is measured at a time.
const batchTime = 4 * time.Millisecond

// engineBatchTime is that of a contender with an engine: a store that is asked for the first
// time after a while may take more care.
const engineBatchTime = 20 * time.Millisecond

// heap is what a server has in memory besides. With next to nothing the garbage collector
// would run all the time.
const heap = 64 << 20

// compare has the contenders serve in turns, a batch each, so that whatever else the
// machine does meets them all.
func compare(contenders []*contender, rounds int, batch time.Duration, parallel bool) []sample {
	besides := make([]byte, heap)
	defer runtime.KeepAlive(besides)
	run := serial
	if parallel {
		run = onAllCores
	}
	sizes := make([]int, len(contenders))
	for i, c := range contenders {
		run(c, 100) // warm
		sizes[i] = max(1, int(batch*200/(run(c, 200)+1)))
	}
	times := make([][]float64, len(contenders))
	for round := range rounds {
		for j := range contenders {
			i := (j + round) % len(contenders)
			times[i] = append(times[i], float64(run(contenders[i], sizes[i]))/float64(sizes[i]))
		}
	}
	var samples []sample
	for i, c := range contenders {
		ratios := make([]float64, rounds)
		for round := range rounds {
			ratios[round] = times[i][round] / times[0][round]
		}
		s := sample{Name: c.name, Nanoseconds: median(times[i]), Ratio: median(ratios)}
		s.Bytes, s.Allocs = allocations(c)
		samples = append(samples, s)
	}
	return samples
}

func serial(c *contender, n int) time.Duration {
	w := &discard{header: http.Header{}}
	start := time.Now()
	for range n {
		c.serve(w)
	}
	return time.Since(start)
}

func onAllCores(c *contender, n int) time.Duration {
	var wg sync.WaitGroup
	start := time.Now()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { serial(c, n/runtime.GOMAXPROCS(0)) })
	}
	wg.Wait()
	return time.Since(start)
}

func allocations(c *contender) (bytes, allocs float64) {
	const n = 300
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	serial(c, n)
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / n, float64(after.Mallocs-before.Mallocs) / n
}

func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
