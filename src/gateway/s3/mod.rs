//! The protocol: S3's operations, decoded by the crate `s3s`, in terms of a [`Store`]. Knows no file and no socket.

pub(super) mod convert;
mod digest;
mod get;
pub(super) mod integrity;
mod list;
mod multipart;
mod put;
pub(super) mod restore;

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::counters::Counters;
use super::store::{AttributeHeaders, Store, StoreError};
use crate::engine::wire;

/// Most keys of one DeleteObjects (S3's limit).
const DELETE_MAX: usize = 1_000;

/// Names the object of this bucket that a PutObject is to rename: `/bucket/key`, percent-encoded, as `x-amz-copy-source` has it.
const RENAME_SOURCE: &str = "x-tierfs-rename-source";

/// S3 over a store.
#[derive(Clone)]
pub struct Protocol {
    pub store: Arc<dyn Store>,
    pub counters: Arc<Counters>,
    /// A write to a bucket that is missing makes it.
    pub make_buckets: bool,
    pub restores: Arc<restore::Restores>,
    /// Smallest part but the last, bytes.
    pub part_bytes_min: u64,
    /// ETags are MD5s where S3's are.
    pub md5_etags: bool,
}

impl Protocol {
    /// The protocol over what the requester may use. Whatever reads or writes goes through this.
    fn of<T>(&self, req: &S3Request<T>) -> Self {
        let access_key = req.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        match self.store.used_by(access_key) {
            Some(store) => Self { store, ..self.clone() },
            None => self.clone(),
        }
    }

    /// Makes the bucket if that is wanted; then whoever uses it finds out whether it is there.
    async fn want_bucket(&self, bucket: &str) -> S3Result<()> {
        if !self.make_buckets || self.store.bucket(bucket).await.is_ok() {
            return Ok(());
        }
        match self.store.create_bucket(bucket).await {
            Ok(()) | Err(StoreError::BucketExists(_)) => Ok(()),
            Err(e) => Err(convert::error(e)),
        }
    }

    async fn need_bucket(&self, bucket: &str) -> S3Result<()> {
        self.store.bucket(bucket).await.map(drop).map_err(convert::error)
    }
}

fn ok<T>(output: T) -> S3Result<S3Response<T>> {
    Ok(S3Response::new(output))
}

#[async_trait::async_trait]
impl S3 for Protocol {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.counters.count("CreateBucket");
        self.of(&req).store.create_bucket(&req.input.bucket).await.map_err(convert::error)?;
        ok(CreateBucketOutput { location: Some(format!("/{}", req.input.bucket)) })
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.counters.count("DeleteBucket");
        self.of(&req).store.remove_bucket(&req.input.bucket).await.map_err(convert::error)?;
        ok(DeleteBucketOutput {})
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.counters.count("HeadBucket");
        self.of(&req).need_bucket(&req.input.bucket).await?;
        ok(HeadBucketOutput::default())
    }

    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.counters.count("ListBuckets");
        let found = self.of(&req).store.buckets().await.map_err(convert::error)?;
        let buckets = found.into_iter().map(|bucket| Bucket {
            name: Some(bucket.name),
            creation_date: Some(convert::time(bucket.created)),
            ..Bucket::default()
        });
        ok(ListBucketsOutput { buckets: Some(buckets.collect()), ..ListBucketsOutput::default() })
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.counters.count("GetBucketLocation");
        self.of(&req).need_bucket(&req.input.bucket).await?;
        // Empty means us-east-1.
        ok(GetBucketLocationOutput::default())
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.counters.count("GetBucketVersioning");
        self.of(&req).need_bucket(&req.input.bucket).await?;
        // No status means that versioning was never on.
        ok(GetBucketVersioningOutput::default())
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.counters.count("PutObject");
        ok(put::put_object(&self.of(&req), req).await?)
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.counters.count("GetObject");
        let answer = get::get_object(&self.of(&req), req).await?;
        self.counters.count_content(answer.content_length);
        ok(answer)
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.counters.count("HeadObject");
        ok(get::head_object(&self.of(&req), req).await?)
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        self.counters.count("CopyObject");
        ok(put::copy_object(&self.of(&req), req).await?)
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.counters.count("DeleteObject");
        let this = self.of(&req);
        let DeleteObjectInput { bucket, key, if_match, .. } = req.input;
        let condition = convert::opt_etag_match(if_match.as_ref());
        this.store.remove(&bucket, &key, condition).await.map_err(convert::error)?;
        ok(DeleteObjectOutput::default())
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.counters.count("DeleteObjects");
        let this = self.of(&req);
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        this.need_bucket(&bucket).await?;
        if delete.objects.len() > DELETE_MAX {
            return Err(s3_error!(MalformedXML, "at most {DELETE_MAX} keys can be deleted at once"));
        }
        // All at once, so that they share their syncs.
        let removals = delete.objects.into_iter().map(|object| {
            let (this, bucket) = (&this, &bucket);
            async move {
                let condition = object.e_tag.map(|etag| super::store::EtagMatch::Etag(etag.value().to_owned()));
                let removed = this.store.remove(bucket, &object.key, condition).await;
                (object.key, removed)
            }
        });
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for (key, removed) in futures::future::join_all(removals).await {
            match removed.map_err(convert::error) {
                Ok(()) => deleted.push(DeletedObject { key: convert::xml_text(key), ..DeletedObject::default() }),
                Err(e) => errors.push(Error {
                    key: convert::xml_text(key),
                    code: Some(e.code().as_str().to_owned()),
                    message: e.message().map(str::to_owned),
                    version_id: None,
                }),
            }
        }
        let quiet = delete.quiet.unwrap_or_default();
        ok(DeleteObjectsOutput { deleted: (!quiet).then_some(deleted), errors: Some(errors), request_charged: None })
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.counters.count("ListObjects");
        ok(list::list_v1(&self.of(&req), req).await?)
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.counters.count("ListObjectsV2");
        ok(list::list_v2(&self.of(&req), req).await?)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.counters.count("CreateMultipartUpload");
        ok(multipart::create(&self.of(&req), req).await?)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.counters.count("UploadPart");
        ok(put::upload_part(&self.of(&req), req).await?)
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        self.counters.count("UploadPartCopy");
        ok(put::upload_part_copy(&self.of(&req), req).await?)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.counters.count("CompleteMultipartUpload");
        ok(multipart::complete(&self.of(&req), req).await?)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.counters.count("AbortMultipartUpload");
        ok(multipart::abort(&self.of(&req), req).await?)
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.counters.count("ListParts");
        ok(multipart::list_parts(&self.of(&req), req).await?)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.counters.count("ListMultipartUploads");
        ok(multipart::list_uploads(&self.of(&req), req).await?)
    }

    async fn restore_object(&self, req: S3Request<RestoreObjectInput>) -> S3Result<S3Response<RestoreObjectOutput>> {
        self.counters.count("RestoreObject");
        restore::restore_object(&self.of(&req), req).await
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        self.counters.count("GetObjectTagging");
        let info = self.of(&req).store.head(&req.input.bucket, &req.input.key).await.map_err(convert::error)?;
        ok(GetObjectTaggingOutput { tag_set: convert::tag_set(&info.tags), version_id: None })
    }

    async fn put_object_tagging(
        &self,
        req: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        self.counters.count("PutObjectTagging");
        let this = self.of(&req);
        let tags = convert::tags_of_set(req.input.tagging.tag_set)?;
        if tags.iter().any(|(tag, _)| matches!(tag.as_str(), wire::LOCAL_TO_REMOTE | wire::REMOTE_TO_LOCAL)) {
            let header =
                |name: &str| req.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            let headers = AttributeHeaders {
                call: header(wire::CALL_HEADER),
                node: header(wire::NODE_HEADER),
                from: header(wire::FROM_HEADER),
                root: header(wire::ROOT_HEADER),
            };
            let answer = this.store.attribute_call(&req.input.bucket, &req.input.key, tags, headers).await;
            let mut response = S3Response::new(PutObjectTaggingOutput::default());
            if let Some(answer) = answer.map_err(convert::error)? {
                let value = hyper::header::HeaderValue::from_str(&answer).map_err(s3s::S3Error::internal_error)?;
                response.headers.insert(wire::ANSWER_HEADER, value);
            }
            return Ok(response);
        }
        this.store.set_tags(&req.input.bucket, &req.input.key, tags).await.map_err(convert::error)?;
        ok(PutObjectTaggingOutput::default())
    }

    async fn delete_object_tagging(
        &self,
        req: S3Request<DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
        self.counters.count("DeleteObjectTagging");
        self.of(&req).store.set_tags(&req.input.bucket, &req.input.key, Vec::new()).await.map_err(convert::error)?;
        ok(DeleteObjectTaggingOutput::default())
    }
}
