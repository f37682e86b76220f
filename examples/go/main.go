// Reads a stream over HTTP and from Kafka, by schemas/README.md and docs/http-api.md alone.
//
//	go run . http://127.0.0.1:9999 localhost:9092 demo-train layer3 6
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/vmihailenco/msgpack/v5"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func overHTTP(address, stream, tap string, batches int) {
	query := fmt.Sprintf("from=batch:0&until=batch:%d&taps=%s", batches, tap)
	for query != "" {
		answer := must(http.Get(address + "/v1/streams/" + stream + "/records?format=msgpack&" + query))
		body := must(io.ReadAll(answer.Body))
		if answer.StatusCode != 200 {
			log.Fatal(string(body)) // a problem that says what to do
		}
		var entries [][]any // [appended_ms, value]
		must(0, msgpack.Unmarshal(body, &entries))
		for _, entry := range entries {
			show("http", entry[1].([]byte))
		}
		if query = ""; answer.Header.Get("Featurestream-More") == "now" {
			query = "cursor=" + answer.Header.Get("Featurestream-Next")
		}
	}
}

// each gives the records of a topic to a function, until that is content.
func each(brokers, topic string, content func(*kgo.Record) bool) {
	client := must(kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic)))
	defer client.Close()
	for {
		fetches := client.PollFetches(context.Background())
		must(0, fetches.Err())
		for _, record := range fetches.Records() {
			if content(record) {
				return
			}
		}
	}
}

func fromKafka(brokers, stream, tap string, batches int) {
	var manifest struct{ Lanes int }
	each(brokers, stream+".manifest", func(r *kgo.Record) bool {
		return string(r.Key) == "manifest" && must(true, json.Unmarshal(r.Value, &manifest))
	})
	next, due, held := 0, map[int32]int{}, map[int][]byte{} // one lane may be ahead of another
	each(brokers, stream+"."+tap, func(r *kgo.Record) bool {
		batch := -1
		for _, h := range r.Headers {
			if h.Key == "batch" {
				batch = must(strconv.Atoi(string(h.Value)))
			}
		}
		if expected := due[r.Partition]*manifest.Lanes + int(r.Partition); batch > expected {
			log.Fatal("batch ", expected, " is missing")
		} else if batch == expected { // else a duplicate
			held[batch] = r.Value
			due[r.Partition]++
		}
		for ; next < batches && held[next] != nil; next++ {
			show("kafka", held[next])
			delete(held, next)
		}
		return next == batches
	})
}

func main() {
	batches := must(strconv.Atoi(os.Args[5]))
	overHTTP(os.Args[1], os.Args[3], os.Args[4], batches)
	fromKafka(os.Args[2], os.Args[3], os.Args[4], batches)
}
