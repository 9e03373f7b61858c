FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags '-s -w' -o userd . && \
    go run .ci/sbom.go image - LICENSE-THIRD-PARTY userd && mkdir data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/LICENSE /LICENSE
COPY --from=build /src/LICENSE-THIRD-PARTY /LICENSE-THIRD-PARTY
COPY --from=build /src/userd /userd
COPY --from=build --chown=65532:65532 /src/data /data
USER 65532:65532
VOLUME /data
# SQLite writes large sorts to a temporary file, and the image has no /tmp.
ENV TMPDIR=/data
ENV DATABASE_URL=sqlite:////data/app.db
# All addresses, on port 5000 or that of PORT, which platforms set.
ENV HOST=0.0.0.0
EXPOSE 5000
HEALTHCHECK --start-period=30s CMD ["/userd", "healthcheck"]
ENTRYPOINT ["/userd"]
